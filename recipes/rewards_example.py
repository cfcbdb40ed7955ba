"""Example of a user's reward function, used by custom_reward.yaml."""


def digits_in_place(completion, problem):
    """Return the share of correct digits, compared place by place from the last digit.

    If the answer is 132, the completions 122 and 32 get 2/3. The completion 1320 gets 0, because every place
    is wrong.
    """
    written, wanted = completion.strip()[::-1], problem.answer[::-1]
    length = max(len(written), len(wanted))
    return sum(one == other for one, other in zip(written, wanted, strict=False)) / length

"""Train on word problems with the GRPO trainer of TRL: `python tests/benchmarks/word_problems_trl.py --help`.

`word_problems.py` starts this script, which needs the extra `trl`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found,unused-ignore]

from llm_reinforce.problems import judge, read_problems


class Clock(TrainerCallback):  # type: ignore[misc]
    """Stop the trainer when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def on_step_end(self, arguments: Any, state: Any, control: Any, **keywords: Any) -> None:
        control.should_training_stop = time.perf_counter() > self.end


def main() -> None:
    """Train until the time is over, and save the policy and the log in the output directory.

    The settings are TRL's defaults, with these exceptions: the maximum length of a completion is given, the
    learning rate is constant, because the number of updates is not known, and a CPU computes in float32.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="file with the training problems")
    parser.add_argument("--policy", required=True, help="directory of the policy before training")
    parser.add_argument("--template", required=True, help="text around each problem")
    parser.add_argument("--max-new-tokens", type=int, required=True, help="maximum length of a completion")
    parser.add_argument("--seconds", type=float, required=True, help="time after which training ends")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainer")
    parser.add_argument("--output", type=Path, required=True, help="directory of policy/ and log.json")
    options = parser.parse_args()
    clock = Clock(options.seconds)
    problems = read_problems(options.data)
    tokenizer = AutoTokenizer.from_pretrained(options.policy)

    def reward(
        completions: Any, completion_ids: list[list[int]], index: list[int], **columns: Any
    ) -> list[float]:
        return [
            float(
                judge(text[0]["content"], problems[row], truncated=ids[-1] != tokenizer.eos_token_id).correct
            )
            for text, ids, row in zip(completions, completion_ids, index, strict=True)
        ]

    prompts = [each.in_template(options.template).prompt for each in problems]
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "index": index}
        for index, prompt in enumerate(prompts)
    ]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.policy, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        callbacks=[clock],
        args=GRPOConfig(
            output_dir=str(options.output),
            seed=options.seed,
            max_completion_length=options.max_new_tokens,
            max_steps=10**6,
            lr_scheduler_type="constant",
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(str(options.output / "policy"))
    (options.output / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")


if __name__ == "__main__":
    main()

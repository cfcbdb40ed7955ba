"use strict";
// The sections "Episodes" (the episodes of one update, with colored tokens) and "One problem over time".
(function () {
  const NAMES = { advantage: "advantage", log_prob: "log-probability", entropy: "entropy", return: "return",
    weight: "importance weight" };
  const PAGE = 24; // cards shown at once
  const COLUMNS = 32; // maximum number of episodes and answers of one problem that are shown
  const { problems, texts, rows, num_updates: numUpdates, num_shown: numShown } = DATA.episodes;
  const get = (id) => document.getElementById(id);
  const state = { shown: PAGE, ...JSON.parse(sessionStorage.getItem("episodes") || "{}") };
  const episodes = rows.filter((row) => row.decoding === undefined);

  const valueAt = (row, name, index) => (Array.isArray(row[name]) ? row[name][index] : row[name]);
  const present = Object.keys(NAMES).filter((name) => episodes.some((row) => row[name] !== undefined));

  // for each kind of value, the absolute value that gets the strongest color; 98% of the values are smaller
  const limits = Object.fromEntries(present.map((name) => {
    const sizes = episodes.flatMap((row) => row[name] ?? []).filter((value) => value !== null)
      .map((value) => Math.abs(name === "weight" ? value - 1 : value)).sort((a, b) => a - b);
    return [name, sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] || 1 : 1];
  }));

  function shade(name, value) {
    if (value === null || value === undefined) return "";
    const signed = name === "advantage" || name === "return" || name === "weight";
    const centered = name === "weight" ? value - 1 : value;
    const strength = 0.6 * Math.min(1, Math.abs(centered) / limits[name]);
    const hue = !signed ? "--strong" : centered > 0 ? "--positive" : "--negative";
    return `rgba(var(${hue}), ${strength.toFixed(3)})`;
  }

  function showLegend(name) {
    const signed = name === "advantage" || name === "return" || name === "weight";
    const middle = name === "weight" ? 1 : 0;
    const ends = signed ? [middle - limits[name], middle, middle + limits[name]]
      : [0, (name === "log_prob" ? -1 : 1) * limits[name]];
    get("legend").replaceChildren(`${NAMES[name]}:`, ...ends.flatMap((value) => {
      const box = element("i");
      box.style.background = shade(name, value);
      return [box, number(value)];
    }));
  }

  function verdictOf(row) {
    if (row.correct === null) return row.terminated ? "not verified" : "not verified, truncated";
    return row.correct ? "correct" : row.terminated ? `wrong: ${row.reason}` : `wrong: ${row.reason}, truncated`;
  }

  function completion(row, colored) {
    if (!row.tokens) return [element("p", { class: "completion" }, element("bdi", {}, row.text || "(empty)"))];
    const line = element("p", { class: "completion", role: "group", "aria-label": "Completion, token by token" });
    const numbers = element("p", { class: "numbers", role: "status" });
    const tokens = row.tokens.map((text, index) => {
      const token = element("span", { class: "token", tabindex: index ? -1 : 0 }, texts[text] === "\n" ? "⏎\n" : texts[text]);
      token.style.background = colored ? shade(colored, valueAt(row, colored, index)) : "";
      token.dataset.index = index;
      return token;
    });
    const tell = (event) => {
      const index = Number(event.target.dataset.index);
      if (Number.isNaN(index)) return;
      const values = present.filter((name) => row[name] !== undefined)
        .map((name) => `${NAMES[name]} ${number(valueAt(row, name, index))}`);
      numbers.textContent = `token ${index + 1} of ${row.num_tokens ?? tokens.length}, “${texts[row.tokens[index]]}”: ${values.join(" · ")}`;
    };
    line.addEventListener("mouseover", tell);
    line.addEventListener("focusin", tell);
    line.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const next = step && tokens[Number(event.target.dataset.index) + step];
      if (!next) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    line.append(...tokens);
    if (row.num_tokens) line.append(` … (${row.num_tokens} tokens)`);
    return [line, numbers];
  }

  function rewardsOf(row) {
    if (row.decoding !== undefined) return `evaluation, ${row.decoding}`;
    if (row.reward === null) return `unscored${row.failure ? `: ${row.failure}` : ""}`;
    const parts = Object.entries(row.rewards).map(([name, value]) => `${name} ${number(value)}`);
    return `reward ${number(row.reward)}${parts.length ? ` (${parts.join(", ")})` : ""}`;
  }

  function card(row, { colored, title }) {
    const problem = problems[row.problem];
    const isUnscored = row.decoding === undefined && row.reward === null;
    const kind = isUnscored || row.correct === null ? "unscored" : row.correct ? "correct" : "wrong";
    const made = element("article", { class: `card ${kind}` });
    if (title) made.append(element("h4", {}, title));
    else made.append(element("p", { class: "prompt" }, element("bdi", {}, problem.prompt)));
    made.append(...completion(row, colored));
    const verdict = element("p", {}, element("span", { class: "verdict" }, verdictOf(row)));
    if (row.correct === false) verdict.append(" · correct answer ", element("bdi", {}, problem.answer));
    if (row.extracted) verdict.append(" · read as ", element("bdi", {}, row.extracted));
    made.append(verdict, element("p", { class: "label" }, rewardsOf(row)));
    return made;
  }

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, label]) => element("option", { value }, label)));
    if (chosen !== undefined && entries.some(([value]) => String(value) === String(chosen))) select.value = chosen;
  }

  const updatesOf = (run) => [...new Set(episodes.filter((row) => row.run === run).map((row) => row.update))];
  let updates = [];

  function chosen() {
    const needle = get("search").value.toLowerCase();
    const update = updates[Number(get("update").value)];
    const rewards = { positive: (value) => value > 0, zero: (value) => value === 0, negative: (value) => value < 0,
      unscored: (value) => value === null };
    const rewardFits = rewards[get("reward").value];
    const text = (row) => `${problems[row.problem].prompt}\n${row.text ?? row.tokens.map((each) => texts[each]).join("")}`;
    return episodes.filter((row) => row.run === Number(get("run").value) && row.update === update
      && (!get("verdict").value || (get("verdict").value === "truncated" ? !row.terminated
        : get("verdict").value === "correct" ? row.correct : !row.correct && row.reason === get("verdict").value))
      && (!rewardFits || (get("reward").value === "unscored" ? row.reward === null : row.reward !== null && rewardFits(row.reward)))
      && (!needle || text(row).toLowerCase().includes(needle)));
  }

  function show() {
    const found = chosen();
    const place = Number(get("update").value);
    get("update-value").textContent = updates.length ? `update ${updates[place]}` : "";
    get("update").setAttribute("aria-valuetext", get("update-value").textContent);
    get("previous").disabled = place === 0;
    get("next").disabled = place >= updates.length - 1;
    const total = episodes.filter((row) => row.run === Number(get("run").value) && row.update === updates[place]).length;
    get("count").textContent = `${found.length} of ${total} recorded episodes of this update`;
    const colored = get("color").value;
    if (colored) showLegend(colored);
    get("cards").replaceChildren(...found.slice(0, state.shown).map((row) => card(row, { colored })));
    get("more").hidden = found.length <= state.shown;
    sessionStorage.setItem("episodes", JSON.stringify({ ...state, run: get("run").value, update: updates[place],
      color: colored, problem: get("problem").value }));
  }

  function chooseRun() {
    updates = updatesOf(Number(get("run").value));
    get("update").max = Math.max(0, updates.length - 1);
    const kept = updates.indexOf(state.update);
    get("update").value = kept >= 0 ? kept : Math.max(0, updates.length - 1);
    chooseProblems();
    show();
  }

  // problems that are recorded at more than one update, those with most updates first
  function chooseProblems() {
    const when = new Map();
    rows.filter((row) => row.run === Number(get("run").value)).forEach((row) => {
      if (!when.has(row.problem)) when.set(row.problem, new Set());
      when.get(row.problem).add(row.update);
    });
    const several = [...when].filter(([, each]) => each.size > 1).sort((a, b) => b[1].size - a[1].size).slice(0, 500);
    options(get("problem"), several.map(([problem, each]) => {
      const prompt = problems[problem].prompt.replace(/\s+/g, " ");
      return [problem, `${prompt.length > 70 ? `${prompt.slice(0, 69)}…` : prompt} (${each.size} updates)`];
    }), state.problem);
    showProblem();
  }

  function showProblem() {
    const problem = Number(get("problem").value);
    const found = rows.filter((row) => get("problem").value !== "" && row.problem === problem
      && row.run === Number(get("run").value)).sort((a, b) => a.update - b.update);
    if (!found.length) {
      get("columns").replaceChildren(element("p", { class: "label" }, "No problem is recorded at several updates."));
      return;
    }
    const stride = Math.ceil(found.length / COLUMNS);
    const kept = found.filter((_, index) => (found.length - 1 - index) % stride === 0); // includes the last episode or answer
    get("columns-note").textContent = stride > 1 ? `${kept.length} of the ${found.length} recorded episodes and answers are shown.` : "";
    get("columns").replaceChildren(...kept.map((row) =>
      card(row, { colored: get("color").value, title: `update ${row.update}` })));
  }

  options(get("run"), DATA.runs.map((run, index) => [index, run.name]), state.run);
  get("run-label").hidden = DATA.runs.length === 1;
  options(get("color"), present.map((name) => [name, NAMES[name]]), state.color);
  const reasons = [...new Set(episodes.filter((row) => row.correct === false).map((row) => row.reason))].sort();
  options(get("verdict"), [["", "any"], ["correct", "correct"], ...reasons.map((reason) => [reason, `wrong: ${reason}`]),
    ["truncated", "truncated"]]);
  get("episodes-note").textContent = !episodes.length ? "No episode is recorded yet."
    : numShown < numUpdates ? `Episodes are recorded for ${numUpdates} updates. This page shows the episodes of ${numShown} evenly spaced updates. The file episodes.jsonl contains all recorded episodes.`
    : "This page shows the recorded episodes of each update. The setting training.logged_episodes limits the number of episodes per update. To see the values of a token, point at it, or move to it with the arrow keys.";
  const restart = () => { state.shown = PAGE; show(); };
  ["update", "search"].forEach((id) => get(id).addEventListener("input", restart));
  ["verdict", "reward"].forEach((id) => get(id).addEventListener("change", restart));
  get("color").addEventListener("change", () => { show(); showProblem(); });
  get("run").addEventListener("change", chooseRun);
  get("problem").addEventListener("change", () => { showProblem(); show(); });
  get("more").addEventListener("click", () => { state.shown += PAGE; show(); });
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    get(id).addEventListener("click", () => { get("update").value = Number(get("update").value) + step; restart(); });
  }
  chooseRun();
})();

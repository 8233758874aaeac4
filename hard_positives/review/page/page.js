"use strict";
// A row's captions: judged by a press or a key. A judgment shows as chosen once it is kept.
const list = document.querySelector("#captions");
if (list) {
  const captions = [...list.children];
  const status = document.querySelector("#status");
  const next = document.querySelector("#next");
  const previous = document.querySelector("#previous");
  const isKept = (caption) => caption.querySelector("[aria-pressed='true']") && !caption.dataset.sent;
  const isJudged = (caption) => isKept(caption) || caption.dataset.sent;
  const firstOpen = (some) => some.find((caption) => !isJudged(caption));
  let sending = Promise.resolve(true);

  const current = () => {
    const at = captions.findIndex((caption) => caption.contains(document.activeElement));
    return at < 0 ? captions.indexOf(firstOpen(captions)) : at;
  };
  const focusOn = (element) => {
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "nearest" });
  };

  const keep = async (button) => {
    const caption = button.closest(".caption");
    const judgment = {
      annotator: list.dataset.annotator,
      row: Number(list.dataset.row),
      caption: Number(caption.dataset.caption),
      judgment: button.dataset.judgment,
    };
    try {
      const answer = await fetch("judgments", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(judgment),
        keepalive: true,
      });
      if (!answer.ok) throw new Error(await answer.text());
    } catch (error) {
      delete caption.dataset.sent;
      focusOn(caption);
      status.className = "problem";
      status.textContent = `Not kept (${error.message}). Start hard-positives review again and open its new address: ` +
        "all that is shown as chosen is kept.";
      return false;
    }
    delete caption.dataset.sent;
    for (const other of caption.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
    const open = captions.filter((one) => !isKept(one)).length;
    status.className = "";
    status.textContent = open ? `Kept. ${open} to go in this row.` : "Kept. This row is judged.";
    return true;
  };
  // The next caption is there at once, so that keys can be typed faster than judgments are kept.
  const judge = (button) => {
    const at = captions.indexOf(button.closest(".caption"));
    captions[at].dataset.sent = "yes";
    sending = sending.then(() => keep(button));
    focusOn(firstOpen([...captions.slice(at + 1), ...captions.slice(0, at)]) ?? next);
  };
  const go = (link) => link && sending.then((kept) => kept && location.assign(link.href));

  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) judge(button);
  });
  for (const link of document.querySelectorAll("nav a")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      go(link);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const at = current();
    const initial = event.key.toLowerCase();
    const button = captions[at]?.querySelector(`[data-judgment^='${/^[tfc]$/.test(initial) ? initial : "none"}']`);
    if (button) judge(button);
    else if (event.key === "ArrowDown") focusOn(captions[Math.min(at + 1, captions.length - 1)]);
    else if (event.key === "ArrowUp") focusOn(captions[Math.max((at < 0 ? captions.length : at) - 1, 0)]);
    else if (event.key === "ArrowRight" || (event.key === "Enter" && !event.target.closest("a, button"))) go(next);
    else if (event.key === "ArrowLeft") go(previous);
    else return;
    event.preventDefault();
  });
  focusOn(firstOpen(captions) ?? next);
}

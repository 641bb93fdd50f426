// Tables that are wider than their place: says so, and where there is more.

export function tellScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = Object.assign(document.createElement("p"), { className: "more", hidden: true });
    // It is for eyes: others read the table as a whole.
    hint.ariaHidden = "true";
    box.before(hint);
    const look = () => {
      const [left, right] = [box.scrollLeft > 1, box.scrollLeft + box.clientWidth < box.scrollWidth - 1];
      hint.hidden = !left && !right;
      hint.textContent = right ? "more columns →" : "← more columns";
      box.classList.toggle("cut", right);
    };
    const observer = new ResizeObserver(look);
    observer.observe(box);
    observer.observe(box.firstElementChild);
    box.addEventListener("scroll", look, { passive: true });
  }
}

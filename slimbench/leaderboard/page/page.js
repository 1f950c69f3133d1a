"use strict";
const value = (row, place) => {
  const cell = row.cells[place];
  const number = parseFloat(cell.dataset.value);
  return Number.isNaN(number) || cell.className !== "number" ? cell.textContent : number;
};
for (const head of document.querySelectorAll("th[scope=col]")) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const order = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, head.cellIndex), value(b, head.cellIndex)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return up ? less : -less;
    });
    body.append(...order);
  });
}
const points = [...document.querySelectorAll(".point")];
for (const row of document.querySelectorAll(".measured tbody tr")) {
  const names = [...row.cells].slice(0, 2).map((cell) => cell.textContent).join(" ");
  const own = points.filter((point) => (point.dataset.name + " ").startsWith(names + " "));
  row.addEventListener("mouseenter", () => own.forEach((point) => point.classList.add("lit")));
  row.addEventListener("mouseleave", () => own.forEach((point) => point.classList.remove("lit")));
}

// Puts the page together.

function showTheme() {
  const dark = document.documentElement.dataset.theme === "dark";
  document.documentElement.classList.toggle("dark", dark);
  byId("theme").textContent = dark ? "Light" : "Dark";
}

function switchTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  showTheme();
  drawCharts();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-open]");
  if (button) openInstance(Number(button.dataset.open)).catch(complain);
});
byId("theme").addEventListener("click", () => switchTheme(document.documentElement.dataset.theme !== "dark"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => switchTheme(event.matches));
showTheme();

try {
  const table = await makeTable();
  listed = () => table.rows({ search: "applied" }).data().toArray();
  for (const cell of document.querySelectorAll(".cell")) {
    cell.addEventListener("click", () => showAll(table, [cell.dataset.was, cell.dataset.now]));
  }
  let waiting;
  table.on("draw", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const left = listed();
      // Sorting and scrolling draw too; the charts only care about what is shown.
      if (left.length !== shownRows.length || left.some((row) => !shownSet.has(row))) {
        shownRows = left;
        shownSet = new Set(left);
        drawCharts();
      }
    }, 120);
  });
  let shownSet = new Set(rows);
  watchCharts();
  const asked = /^#instance-(\d+)$/.exec(location.hash);
  if (asked && rows[asked[1]]) await openInstance(Number(asked[1]));
  requestAnimationFrame(() => {
    performance.mark("ready");
    document.documentElement.dataset.ready = "yes";
  });
} catch (problem) {
  complain(problem);
}

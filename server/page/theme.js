// A script of its own, and not a module, so that the chosen colours are there before the first paint.
try {
  document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("utter.theme")) ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto";
}

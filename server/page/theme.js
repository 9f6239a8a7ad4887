// A script of its own, and not a module, so that the chosen colours are there before the first paint.
document.documentElement.dataset.theme = localStorage.getItem("utter.theme") ?? "auto";

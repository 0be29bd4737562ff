// Shows the view of the chosen task and format; the address keeps the choice.
const task = document.getElementById("task");
const format = document.getElementById("format");
const show = () => {
  let found = false;
  for (const view of document.querySelectorAll(".view")) {
    view.hidden = view.dataset.task !== task.value || view.dataset.format !== format.value;
    found ||= !view.hidden;
  }
  document.getElementById("missing").hidden = found;
};
const chosen = new URLSearchParams(location.hash.slice(1));
for (const [name, choice] of Object.entries({ task, format })) {
  if ([...choice.options].some((option) => option.value === chosen.get(name))) choice.value = chosen.get(name);
  choice.addEventListener("change", () => {
    location.hash = new URLSearchParams({ task: task.value, format: format.value });
    show();
  });
}
show();

// The page face of book/widget/explore.py. Every widget carries a copy, so that it works wherever its HTML is pasted.
// `currentScript` ties a copy to its own container, even if the same widget stands twice on a page: ids and the
// names of radio buttons get the number of the instance.
(() => {
const root = document.currentScript.closest(".omd-explore");
if (!root || root.dataset.ready) return;
root.dataset.ready = "yes";
const find = (what) => root.querySelector(what), all = (what) => [...root.querySelectorAll(what)];
const {chunks, frames, says, points} = JSON.parse(find(".omd-data").textContent);
const nth = [...document.querySelectorAll(".omd-explore")].indexOf(root);
const frame = find(".omd-frame"), status = find(".omd-status");
const swap = (text) => text.replace(/["']/g, (mark) => (mark === '"' ? "'" : '"'));
const own = (html) => swap(html).replace(/omd-#(\d+)-/g, `omd-${root.dataset.uid}-${nth}-$1-`);
const show = () => {
  const at = all("input[type=range],input:checked").map((input) => {
    const {values} = input.dataset, value = values ? JSON.parse(values)[input.value] : input.value;
    if (values) {
      const written = Number(value).toLocaleString("en", {maximumFractionDigits: 9});
      input.setAttribute("aria-valuetext", written);
      input.nextElementSibling.textContent = written;
    }
    return `${input.dataset.axis}=${value}`;
  });
  const i = points.findIndex((point) => at.every((part) => point.split(";").includes(part)));
  frame.innerHTML = own(frames[i].map((k) => chunks[k]).join(""));
  frame.dataset.point = points[i];
  if (status.textContent !== says[i]) status.textContent = says[i];
};
for (const input of all("input")) {
  if (input.type === "radio") input.name += `-${nth}`;
  input.addEventListener("input", show);
}
for (const input of all("[data-first]")) input.checked = true;
find(".omd-controls").hidden = false;
show();
})();

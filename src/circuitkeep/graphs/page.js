"use strict";
/* Puts the page together. */

const paper = matchMedia("print");
const whenResized = () => {
  layOut(canvasRoom());
  fit(paper.matches);
  redraw();
};
const whenColoursChange = () => {
  readInks();
  // At once: on paper there is no next frame.
  drawAll();
};

byId("view").hidden = false;
setUpPointer(byId("graph"));
setUpKeys(byId("graph"));
setUpControls();
readInks();
new ResizeObserver(whenResized).observe(byId("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", whenColoursChange);
paper.addEventListener("change", () => {
  whenResized();
  whenColoursChange();
});
// As many edges as can be told apart to begin with, and something in the subgraph.
const first = Math.min(300, source.length);
byId("edges").value = String(
  source.length < 2 ? 100 : Math.round((100 * Math.log(first)) / Math.log(source.length)),
);
whenResized();
showEdges();
if (view.logit !== null) {
  // The strongest path through the most influential feature, or else any.
  const through = byInfluence.find((place) => nodes[place].kind === "feature") ?? null;
  const parts = [strongestPath(null, through ?? view.logit), strongestPath(through, view.logit)];
  const edges = parts.flatMap((part) => part?.edges ?? []);
  showPath();
  told = view.logit;
  pin([view.logit, ...edges.flatMap((edge) => [source[edge], target[edge]])]);
}
document.body.dataset.ready = "";

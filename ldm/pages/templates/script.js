// The order of the evaluation's prompts.
const order = document.getElementById("order"), list = document.getElementById("prompts");
if (order) order.onchange = () => {
  const [key, sign] = order.value.split(" ");
  [...list.children].sort((a, b) => (a.dataset[key] - b.dataset[key]) * sign).forEach(e => list.append(e));
};

// Samples over the steps: one step at a time, chosen by the slider, or all of them side by side.
const slider = document.getElementById("step"), tracks = document.getElementById("tracks");
if (slider) {
  const steps = slider.dataset.steps.split(" ").map(Number), said = document.getElementById("step-said");
  const show = () => {
    const step = steps[slider.value];
    tracks.querySelectorAll(".track").forEach(track => {  // each shows its newest picture until this step
      const until = [...track.children].filter(f => Number(f.dataset.step) <= step);
      const shown = until.length ? until[until.length - 1] : track.children[0];
      [...track.children].forEach(f => { f.hidden = f !== shown; });
    });
    said.textContent = "step " + step;
    slider.setAttribute("aria-valuetext", "step " + step);
    document.querySelectorAll("svg.plot[data-follows]").forEach(svg => mark(svg, step));
  };
  slider.oninput = show;
  document.querySelectorAll("input[name=shown]").forEach(choice => {
    choice.onchange = () => {
      const all = choice.value === "all" && choice.checked;
      tracks.classList.toggle("all", all);
      slider.disabled = all;
    };
  });
  document.getElementById("timeline").hidden = false;
  show();
}

// The value of every line under the pointer.
function mark(svg, x) {
  const [low, high, left, right] = ["low", "high", "left", "right"].map(name => Number(svg.dataset[name]));
  const marker = svg.querySelector(".marker"), at = left + (x - low) / (high - low) * (right - left);
  marker.setAttribute("x1", at); marker.setAttribute("x2", at);
  marker.style.visibility = x < low || x > high ? "hidden" : "visible";
  svg.parentElement.querySelectorAll("output[data-points]").forEach(output => {
    const points = JSON.parse(output.dataset.points);
    const nearest = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    output.textContent = Number(nearest[1].toPrecision(3)) + " at " + nearest[0];
  });
}
document.querySelectorAll("svg.plot[data-low]").forEach(svg => {
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const [low, high, left, right] = ["low", "high", "left", "right"].map(name => Number(svg.dataset[name]));
    const x = low + ((event.clientX - box.left) * scale - left) / (right - left) * (high - low);
    mark(svg, Math.min(high, Math.max(low, x)));
  });
});

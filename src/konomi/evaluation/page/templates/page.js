"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const stage = viewer.querySelector(".stage");
  const [under, over] = viewer.querySelectorAll("img");
  const slider = viewer.querySelector("input");
  let row = [], at = 0;

  // What is inside the page at once; the file beside it, where it is there, in its place.
  const put = (image, link) => {
    const inside = link.querySelector("img").src, file = link.getAttribute("href");
    image.src = inside;
    if (!file) return;
    const whole = new Image();
    whole.onload = () => { if (image.dataset.of === file) image.src = whole.src; };
    image.dataset.of = file;
    whole.src = file;
  };
  const slide = () => stage.style.setProperty("--at", slider.value + "%");
  const show = () => {
    const link = row[at], base = row.find((one) => one.classList.contains("base"));
    const alone = !base || base === link;
    stage.classList.toggle("alone", alone);
    viewer.classList.toggle("alone-control", alone);
    put(over, link);
    put(under, alone ? link : base);
    viewer.querySelector(".caption").textContent = link.dataset.caption;
    slider.value = alone ? 0 : slider.dataset.last || 50;
    slide();
  };
  const move = (by) => { at = (at + by + row.length) % row.length; show(); };
  const open = (link) => {
    row = [...link.closest("[data-row]").querySelectorAll("a.picture")];
    at = row.indexOf(link);
    viewer.showModal();
    show();
  };

  document.querySelectorAll("a.picture").forEach((link) => {
    link.addEventListener("click", (event) => { event.preventDefault(); open(link); });
    link.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); open(link); }
    });
  });
  slider.addEventListener("input", () => { slider.dataset.last = slider.value; slide(); });
  const drag = (event) => {
    if (!event.buttons || stage.classList.contains("alone")) return;
    const box = stage.getBoundingClientRect();
    slider.value = slider.dataset.last = (100 * (event.clientX - box.left)) / box.width;
    slide();
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  viewer.querySelectorAll("[data-move]").forEach((button) =>
    button.addEventListener("click", () => move(Number(button.dataset.move))));
  viewer.querySelector(".shut").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target === slider) return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });

  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    const before = button.textContent;
    button.textContent = button.dataset.done;
    setTimeout(() => { button.textContent = before; }, 1500);
  }));
})();

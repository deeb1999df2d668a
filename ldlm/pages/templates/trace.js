(() => {
  const root = document.documentElement;
  const frames = [...document.querySelectorAll(".frame")];
  const last = frames.length - 1;
  const [button, slider, output, strip, cursor] =
    ["button", "input", "output", ".strip", ".cursor"].map((name) => document.querySelector(name));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let now = 0, timer = 0;

  const show = (number) => {
    frames[now].classList.remove("on");
    now = Math.min(Math.max(number, 0), last);
    frames[now].classList.add("on");
    slider.value = now;
    slider.setAttribute("aria-valuetext", "t = " + frames[now].dataset.t);
    output.textContent = "t = " + frames[now].dataset.t;
    cursor.style.top = 100 * now / frames.length + "%";
    cursor.style.height = 100 / frames.length + "%";
  };
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    root.classList.remove("playing");
    button.setAttribute("aria-label", "Play");
  };
  const play = () => {
    if (now === last) show(0);
    root.classList.add("playing");
    button.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { show(now + 1); if (now === last) pause(); }, 320);
  };
  const go = (number) => { pause(); show(number); };
  const toggle = () => timer ? pause() : play();
  const fromAddress = () => /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;

  button.addEventListener("click", toggle);
  slider.addEventListener("input", () => go(Number(slider.value)));
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    go(Math.floor((event.clientY - box.top) / box.height * frames.length));
  });
  addEventListener("hashchange", () => go(fromAddress() ?? now));
  addEventListener("keydown", (event) => {
    if (event.target === slider || event.target === button) return;
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) go(now + step);
    if (event.key === " ") { event.preventDefault(); toggle(); }
  });

  root.classList.add("js");
  if (fromAddress() !== null) go(fromAddress());
  else if (still) go(last);
  else { show(0); play(); }
})();

// What the benchmark measures inside the page.

(() => {
  const scope = document.querySelector("#scope");
  const list = scope.querySelector(".tokens");
  const layer = scope.querySelector(".layer input");
  const frame = () => new Promise(requestAnimationFrame);

  // Milliseconds of script from an input event to the end of drawing, and between
  // frames. What is asked for first is called first, so the page draws in between.
  async function scrub(frames) {
    const times = { script: [], frame: [] };
    let last = await frame();
    for (let i = 0; i < frames; i++) {
      let before;
      requestAnimationFrame(() => { before = performance.now(); });
      const start = performance.now();
      layer.value = i % (Number(layer.max) + 1);
      layer.dispatchEvent(new Event("input", { bubbles: true }));
      const event = performance.now() - start;
      const now = await new Promise((told) => requestAnimationFrame((at) => {
        times.script.push(event + performance.now() - before);
        told(at);
      }));
      times.frame.push(now - last);
      last = now;
    }
    return times;
  }

  const noted = { times: [], longest: 0 };

  function watch() {
    new PerformanceObserver((found) => {
      for (const { duration } of found.getEntries()) {
        noted.longest = Math.max(noted.longest, duration);
      }
    }).observe({ type: "longtask" });
    new MutationObserver(() => {
      const tokens = list.querySelectorAll(".said").length;
      if (tokens) noted.times.push([performance.now(), tokens]);
    }).observe(list, { childList: true });
  }

  function seen() {
    const [[from, first], [to, tokens]] = [noted.times[0], noted.times.at(-1)];
    return {
      tokens,
      rate: ((tokens - first) / (to - from)) * 1000,
      longest: noted.longest,
      chosen: list.querySelector("[aria-selected=true]")?.dataset.key,
      scroll: list.scrollTop,
    };
  }

  window.bench = { scrub, watch, seen };
})();

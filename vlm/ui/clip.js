// Clip: frames of a video, as far as the browser can read it; they are drawn here, as
// the server has nothing that reads videos.

const FRAME = { side: 896, type: "image/png" };
const PATIENCE = 15_000; // milliseconds until a frame must have come

// Files of so many frames, each from the middle of an equal part of the time.
async function framesOf(file, count) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: URL.createObjectURL(file) });
  try {
    await told(video, "loadeddata");
    const length = await lengthOf(video);
    const frames = [];
    for (let i = 0; i < count; i++) {
      await seek(video, ((i + 0.5) / count) * length);
      frames.push(await frameOf(video, i));
    }
    return frames;
  } finally {
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.load();
  }
}

// A recording may not know its length before it has been to its end.
async function lengthOf(video) {
  if (video.duration === Infinity) await seek(video, Number.MAX_SAFE_INTEGER);
  return Number.isFinite(video.duration) ? video.duration : video.currentTime;
}

async function seek(video, time) {
  const come = told(video, "seeked");
  video.currentTime = time;
  await come;
}

function told(video, name) {
  return new Promise((come, refused) => {
    video.addEventListener(name, come, { once: true });
    video.addEventListener("error", refused, { once: true });
    setTimeout(() => refused(new Error("no frame came")), PATIENCE);
  });
}

async function frameOf(video, number) {
  const { videoWidth: width, videoHeight: height } = video;
  const scale = Math.min(1, FRAME.side / Math.max(width, height));
  const surface = document.createElement("canvas");
  Object.assign(surface, { width: Math.round(width * scale), height: Math.round(height * scale) });
  surface.getContext("2d").drawImage(video, 0, 0, surface.width, surface.height);
  const blob = await new Promise((taken) => surface.toBlob(taken, FRAME.type));
  return new File([blob], `frame-${number + 1}.png`, { type: FRAME.type });
}

// The play tab. `element` is its root; GAME is what the server knows of the model.
const find = (name) => element.querySelector(`.iwm-${name}`);
const [screen, caption, rate, count, shown] =
  ["screen", "caption", "rate", "count", "action"].map(find);
const [pads, speed, running, past, error] =
  ["pads", "speed", "running", "past", "error"].map(find);
const ink = screen.getContext("2d");
const words = (name) => name.replaceAll("_", " ");
const say = (line) => {
  error.hidden = !line;
  error.textContent = line || "";
};

let socket = null;
let waiting = false; // for the server's answer: never more than one question under way
let asked = null; // "reset", or the action of the step under way
let seed = 0;
let place = null; // of the last start, to begin there again
let steps = 0;
let last = 0; // when the last step was asked for
const held = []; // actions under the fingers, the newest last
let tapped = null; // pressed and not yet taken: a short tap counts, too
const drawn = []; // times of the frames of the last second

[screen.width, screen.height] = [GAME.width, GAME.height];
running.parentElement.hidden = GAME.idle === null;
running.checked = false;

function send(message) {
  if (!socket || socket.readyState !== WebSocket.OPEN || waiting) return false;
  waiting = true;
  socket.send(JSON.stringify(message));
  return true;
}

function reset(again) {
  if (!again) place = Math.floor(Math.random() * GAME.starts);
  if (!socket || socket.readyState > WebSocket.OPEN) return connect();
  if (waiting) return void setTimeout(() => reset(true), 20);
  asked = "reset";
  send({ do: "reset", place, seed: seed++ });
}

function connect() {
  say("");
  waiting = false;
  const url = new URL("live", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  socket = new WebSocket(url);
  socket.binaryType = "blob";
  socket.onopen = () => reset(place !== null);
  socket.onmessage = (event) => (typeof event.data === "string" ? told(event.data) : draw(event.data));
  socket.onclose = () => {
    waiting = false;
    if (error.hidden) say("The connection ended. Press New start to go on.");
    caption.textContent = "";
  };
}

function told(text) {
  const message = JSON.parse(text);
  if (message.error) {
    waiting = false;
    say(message.error);
    return;
  }
  const { caption: name, past: actions } = message.started;
  caption.textContent = `Begun from ${name}.`;
  past.textContent = actions.length
    ? `What led there: ${actions.map((one) => (one ? words(one) : "not known")).join(", ")}.`
    : "";
}

async function draw(blob) {
  const picture = await createImageBitmap(blob);
  ink.drawImage(picture, 0, 0);
  picture.close();
  const now = performance.now();
  if (asked === "reset") {
    steps = 0;
    drawn.length = 0;
    shown.textContent = "none yet";
  } else {
    steps += 1;
    drawn.push(now);
    shown.textContent = words(asked);
  }
  count.textContent = steps;
  screen.dataset.steps = steps;
  say("");
  waiting = false;
}

function wanted() {
  if (held.length) return held[held.length - 1];
  if (tapped !== null) return tapped;
  return running.checked ? GAME.idle : null;
}

function tick(now) {
  if (!element.isConnected) return void (socket && socket.close());
  while (drawn.length && now - drawn[0] > 1000) drawn.shift();
  rate.textContent = drawn.length > 1
    ? Math.round(((drawn.length - 1) * 1000) / (drawn[drawn.length - 1] - drawn[0]))
    : 0;
  const action = wanted();
  const pace = 1000 / Math.min(60, Math.max(1, Number(speed.value) || 15));
  // Half a display frame early is nearer to the pace than half a one late.
  if (action !== null && now - last >= pace - 8 && element.offsetParent !== null) {
    if (send({ do: "step", action })) {
      asked = action;
      last = now;
      tapped = null;
    }
  }
  requestAnimationFrame(tick);
}

function press(action, button) {
  if (held.includes(action)) return;
  held.push(action);
  tapped = action;
  button.classList.add("iwm-held");
}

function release(action, button) {
  const at = held.indexOf(action);
  if (at >= 0) held.splice(at, 1);
  button.classList.remove("iwm-held");
}

const byKey = new Map();
for (const { action, keys, label } of GAME.actions) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.action = action;
  button.append(words(action));
  const hint = document.createElement("kbd");
  hint.textContent = label || "no key";
  button.append(hint);
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    press(action, button);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    button.addEventListener(end, () => release(action, button));
  }
  pads.append(button);
  keys.forEach((key) => byKey.set(key, [action, button]));
}

const typing = (target) => target instanceof Element && target.closest("input, textarea, select, [contenteditable]");

addEventListener("keydown", (event) => {
  if (!element.isConnected || element.offsetParent === null) return;
  if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  const known = byKey.get(event.code);
  if (!known) return;
  event.preventDefault(); // arrows and space would scroll, or press the focused button
  press(...known);
});
addEventListener("keyup", (event) => {
  const known = byKey.get(event.code);
  if (known) release(...known);
});
addEventListener("blur", () => {
  for (const [action, button] of byKey.values()) release(action, button);
});

find("new").addEventListener("click", (event) => {
  event.currentTarget.blur();
  reset(false);
});
find("again").addEventListener("click", (event) => {
  event.currentTarget.blur();
  reset(true);
});
running.addEventListener("change", () => running.blur());

connect();
requestAnimationFrame(tick);

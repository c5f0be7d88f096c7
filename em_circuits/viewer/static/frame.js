// What every page has: theme, blur, keys, name, link for another browser, live and lazy parts.
import { all, ask, byId, say, targetOf, toast, typing } from "./ask.js";

const root = document.documentElement;

function setTheme() {
  const next = { null: "dark", dark: "light", light: null }[localStorage.getItem("theme")];
  if (next) localStorage.setItem("theme", next);
  else localStorage.removeItem("theme");
  root.dispatchEvent(new Event("apply-theme"));
  toast({ dark: "Dark", light: "Light" }[next] ?? "As the system");
}

function setBlur() {
  const on = !("blur" in root.dataset);
  if (on) {
    root.dataset.blur = "";
    localStorage.setItem("blur", "1");
  } else {
    delete root.dataset.blur;
    localStorage.removeItem("blur");
  }
  showBlur();
}

const showBlur = () => byId("blur").setAttribute("aria-pressed", String("blur" in root.dataset));

byId("theme").addEventListener("click", setTheme);
byId("blur").addEventListener("click", setBlur);
byId("help").addEventListener("click", () => byId("keys").showModal());
showBlur();

byId("me")?.addEventListener("click", () => byId("who").showModal());
byId("who-form")?.addEventListener("submit", async (event) => {
  if (event.submitter?.value !== "ok") return;
  try {
    const { name } = await ask("/api/me", { name: byId("who-name").value });
    byId("my-name").textContent = name;
    document.querySelector(".avatar").textContent = name[0];
    root.dispatchEvent(new CustomEvent("renamed", { detail: name }));
  } catch (error) {
    say(error);
  }
});
byId("new-link")?.addEventListener("click", async () => {
  try {
    const { url } = await ask("/api/link", {});
    byId("link").hidden = false;
    byId("link").value = url;
    byId("link").select();
  } catch (error) {
    say(error);
  }
});

const ours = new Set(document.body.dataset.ownKeys.split(" ")); // keys that the page itself answers to
// What judges say of prompts that wait for one's answer is hidden until one chooses to browse without blinding.
addEventListener("click", async (event) => {
  const button = targetOf(event).closest?.("[data-browse]");
  if (!button) return;
  try {
    await ask("/api/browsing", { unblinded: button.dataset.browse === "unblinded" });
    location.reload();
  } catch (error) {
    say(error);
  }
});

// A person's label of a feature, kept where it is changed.
for (const input of all("[data-label]"))
  input.addEventListener("change", () =>
    ask(
      `/api/node-labels?${new URLSearchParams({ pair: input.dataset.pair })}`,
      { feature: input.dataset.label, text: input.value.trim() },
      "PUT",
    )
      .then(() => toast("Kept"))
      .catch(say),
  );

// A report in its frame is a stranger: its address says which theme it is to have.
for (const frame of all("iframe[data-src]")) {
  const show = () => {
    frame.src = `${frame.dataset.src}#${root.dataset.theme}`;
  };
  root.addEventListener("themechange", show);
  show();
}

let went = 0;
addEventListener(
  "keydown",
  (event) => {
    if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (Date.now() - went < 1200) {
      const [link] = all(`.bar nav a[data-key="${CSS.escape(event.key)}"]`);
      went = 0;
      if (link) {
        event.preventDefault();
        event.stopImmediatePropagation();
        link.click();
        return;
      }
    }
    const own = { b: setBlur, d: setTheme, "?": () => byId("keys").showModal(), "/": () => byId("search")?.focus() }[
      event.key
    ];
    if (ours.has(event.key)) return;
    if (event.key === "g") went = Date.now();
    else if (own) {
      event.preventDefault();
      own();
    }
  },
  { capture: true },
);

async function fragment(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${response.status}`);
  return response.text();
}

// A live part is asked for again and again, and replaced only when it has changed.
for (const part of all("[data-live]")) {
  let before = null;
  const refresh = async () => {
    if (document.hidden || part.contains(document.activeElement)) return;
    try {
      const text = await fragment(part.dataset.live);
      if (text !== before && (before !== null || part.querySelector(".loading"))) part.innerHTML = text;
      before = text;
      part.classList.remove("stale");
    } catch {
      part.classList.add("stale");
    }
  };
  setInterval(refresh, Number(part.dataset.every));
  refresh();
}

for (const part of all("[data-lazy]")) {
  fragment(part.dataset.lazy)
    .then((text) => {
      part.innerHTML = text;
    })
    .catch(() => {
      part.textContent = "This part could not be read; reload the page to try again.";
    });
}

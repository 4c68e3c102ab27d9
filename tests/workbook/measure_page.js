// Appended to a page that headless Chromium opens in a frame: what does not fit the frame, and what each picture says.
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e && e !== document.body && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const name = (e) => `${e.tagName.toLowerCase()}.${e.className}: ${e.textContent.slice(0, 60)}`;
  const shown = [...document.body.querySelectorAll("*")].filter((e) => !["SCRIPT", "STYLE"].includes(e.tagName));
  const outside = shown.filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > width + 0.5 || box.left < -0.5) && !scrolls(e.parentElement);
});
const cut = shown.filter((e) => {
  const style = getComputedStyle(e);
  return style.display !== "inline" && style.overflowX !== "visible" && !/auto|scroll/.test(style.overflowX)
    && style.clipPath === "none" && e.scrollWidth > e.clientWidth + 1;
});
const pictures = [...document.querySelectorAll("img, svg")].map((e) => ({
  drawn: e.tagName === "svg" || (e.complete && e.naturalWidth > 0),
  caption: e.closest("figure")?.querySelector("figcaption")?.textContent ?? "",
}));
parent.document.getElementById(window.name).textContent = JSON.stringify({
  width: window.innerWidth,
  scrollWidth: document.documentElement.scrollWidth,
  outside: outside.map(name),
  cut: cut.map(name),
  pictures,
}).replaceAll("<", "\\u003c").replaceAll("&", "\\u0026");
});

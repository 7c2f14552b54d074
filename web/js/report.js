// The server does not know how the page looks, so that a Stage Report comes with its plot in both ways.
import { api } from "../../../scripts/api.js";

/** Whether the page is dark: its background is nearer to black than to white. */
function dark() {
  const style = getComputedStyle(document.body);
  const probe = document.createElement("div");
  probe.style.color = style.getPropertyValue("--comfy-menu-bg").trim() || style.backgroundColor;
  document.body.append(probe);
  const [red, green, blue] = (getComputedStyle(probe).color.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  probe.remove();
  return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
}

// The page has taken the output when this runs, and draws it afterwards.
api.addEventListener("executed", ({ detail }) => {
  const plots = detail?.output;
  if (plots?.dark?.length && plots.images?.length && dark()) {
    plots.images.splice(0, plots.images.length, ...plots.dark);
  }
});

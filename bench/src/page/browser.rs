//! The page in a real browser without a screen: at the widths of a desk and of a telephone, light and dark, nothing stands over
//! its neighbour or out of the window, and all words can be read.

use std::{fs, process::Command};

use super::{page, tests::full};

/// Looks at the page from inside and leaves what it finds wrong in the document.
const LOOK: &str = r#"<script>
const wrong = [];
const words = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
const shown = (e) => e.getClientRects().length > 0;
if (document.documentElement.scrollWidth > innerWidth)
  wrong.push(`the page is ${document.documentElement.scrollWidth} wide in a window of ${innerWidth}`);
const apart = (all, what) => {
  const boxes = all.map((e) => [e, e.getBoundingClientRect()]);
  boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
    if (x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 1 && y.top < x.bottom - 1)
      wrong.push(`${what}: "${a.textContent.trim().slice(0, 40)}" stands over "${b.textContent.trim().slice(0, 40)}"`);
  }));
};
document.querySelectorAll("svg").forEach((svg) => {
  apart([...svg.querySelectorAll("text")], svg.getAttribute("aria-label"));
  const frame = svg.getBoundingClientRect();
  svg.querySelectorAll("text, circle").forEach((e) => {
    const box = e.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      wrong.push(`${svg.getAttribute("aria-label")}: "${e.textContent.slice(0, 40)}" is cut off`);
  });
});
apart([...document.querySelectorAll("figure")], "figures");
document.querySelectorAll("tr").forEach((row) => apart([...row.children], "a table"));
const number = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (colour) => { const [r, g, b] = number(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (c !== "rgba(0, 0, 0, 0)") return c; } return "rgb(255, 255, 255)"; };
document.querySelectorAll("body *").forEach((e) => {
  if (!words(e) || !shown(e) || ["SCRIPT", "STYLE", "title"].includes(e.tagName)) return;
  const style = getComputedStyle(e);
  const [a, b] = [light(e.closest("svg") ? style.fill : style.color), light(back(e))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) wrong.push(`"${e.textContent.trim().slice(0, 40)}" is hard to read`);
});
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.body.dataset.seen = `${innerWidth} ${dark ? "dark" : "light"} figures ${document.querySelectorAll("figure").length}`;
document.body.dataset.wrong = wrong.join("; ");
</script>"#;

/// What the browser makes of the page: what it saw, and what is wrong.
fn seen(page: &str, width: u32, dark: bool) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.html");
    fs::write(&file, page.replace("</body>", &format!("{LOOK}</body>"))).unwrap();
    let output = Command::new("timeout")
        .args([
            "120",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
        .arg(format!("file://{}", file.display()))
        .env("HOME", dir.path())
        .output()
        .unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    let attribute = |name: &str| {
        let rest = dom.split_once(&format!("data-{name}=\"")).map(|(_, rest)| rest);
        rest.and_then(|rest| rest.split('"').next()).map(str::to_owned)
    };
    let said = || panic!("chromium (Debian: chromium) says: {}", String::from_utf8_lossy(&output.stderr));
    (attribute("seen").unwrap_or_else(said), attribute("wrong").unwrap_or_else(said))
}

#[test]
fn a_browser_shows_everything_readable() {
    let page = page(&[full(&["upstream 1.36"]), full(&["v1.36.0+sluice, embedded", "v1.36.0+sluice, etcd"])]);
    for (width, dark) in [(1280, false), (1280, true), (600, true)] {
        let colours = if dark { "dark" } else { "light" };
        let expected = (format!("{width} {colours} figures 3"), String::new());
        assert_eq!(seen(&page, width, dark), expected);
    }
}

#[test]
fn a_browser_tells_what_cannot_be_read() {
    let broken = page(&[full(&["x"])])
        .replace("svg text { fill: var(--soft)", "svg text { fill: var(--card)")
        .replace("main { max-width: 76rem", "main { width: 3000px");
    let (_, wrong) = seen(&broken, 1280, false);
    assert!(wrong.contains("is hard to read") && wrong.contains("the page is"), "{wrong}");
}

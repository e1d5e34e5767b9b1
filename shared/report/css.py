"""Style sheet of the report page: light, dark and print."""

PAGE_CSS = """\
:root { color-scheme: light dark;
  --bg: #f6f7f9; --card: #ffffff; --ink: #1d2430; --muted: #5b6575; --line: #dde2e9; --accent: #005a8d;
  --warn-bg: #fff5dc; --warn-line: #d99a00; --code: #f0f2f5; --stripe: #f8f9fb; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #101317; --card: #181c22; --ink: #e6e9ee; --muted: #9aa4b2; --line: #2c333d; --accent: #7cc4f2;
  --warn-bg: #33290f; --warn-line: #d99a00; --code: #12161b; --stripe: #1c2128; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.55 Inter, "Segoe UI", "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif; }
header, main, nav { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 40px; padding-bottom: 6px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
.subtitle { color: var(--muted); margin: .35rem 0 0; font-size: 1.05rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 0; padding: 10px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .92rem; }
nav .l3 { font-size: .86rem; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus { text-decoration: underline; }
main { padding-bottom: 60px; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 .7rem; letter-spacing: -.005em; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p, ul { max-width: 78ch; margin: .5rem 0; }
li { margin: .2rem 0; }
.warning { background: var(--warn-bg); border-left: 4px solid var(--warn-line); border-radius: 4px;
  padding: 10px 14px; max-width: none; }
.warning b { margin-right: .35em; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 10px; margin: .8rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 9px 13px; min-width: 0; }
dt { color: var(--muted); font-size: .8rem; overflow-wrap: anywhere; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dl.many { gap: 0 26px; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); font-size: .88rem; }
dl.many div { display: flex; justify-content: space-between; gap: 12px; background: none; border: 0; border-radius: 0;
  border-bottom: 1px solid var(--line); padding: 3px 2px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding: 9px 13px; font-size: .86rem; }
th, td { padding: 6px 13px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
td:first-child { overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--muted); font-weight: 600; font-size: .82rem; white-space: nowrap; }
caption + thead th { border-top: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--stripe); }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line); }
figcaption { color: var(--muted); font-size: .88rem; margin-top: .4rem; max-width: 90ch; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  overflow: auto; max-height: 460px; font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media print {
  :root { --bg: #fff; --card: #fff; --ink: #000; --muted: #444; --line: #bbb; --code: #fff; --stripe: #fff; }
  body { font-size: 10.5pt; } nav { display: none; }
  header, main { max-width: none; padding-left: 0; padding-right: 0; }
  pre { max-height: none; white-space: pre-wrap; } .scroll { overflow: visible; }
  h2, h3 { break-after: avoid; } figure, tr, dl div { break-inside: avoid; } thead { display: table-header-group; } }
"""

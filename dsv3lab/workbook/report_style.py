"""How a report looks: one column on a telephone, two on a screen, whole figures in print."""

STYLE = """
:root{--ink:#1a1a1a;--soft:#5c5c5c;--line:#d8d8d8;--paper:#fff;--good:#00694d;--bad:#b03a00;--mid:#7a5200}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:64rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
 background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.2rem;margin:2em 0 .5em;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.8em 0 .3em}
nav{font-size:.9rem}
p.soft,figcaption,small,td.soft{color:var(--soft)}
.verdict{font-size:1.1rem;font-weight:600;padding:.6em .8em;border-left:.4em solid;margin:1em 0}
.pass{color:var(--good)}.fail,.error,.missing{color:var(--bad)}.skipped,.waived{color:var(--mid)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;border-bottom:2px solid var(--line);padding:.3em .5em;vertical-align:bottom}
td{border-bottom:1px solid var(--line);padding:.35em .5em;vertical-align:top}
td:first-child{min-width:5em}
table.gates{table-layout:fixed}
table.gates th:nth-child(1){width:21%}table.gates th:nth-child(2),table.gates th:nth-child(3),
table.gates th:nth-child(5),table.gates th:nth-child(6){width:10.5%}table.gates th:nth-child(4){width:13%}
td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.pass,td.fail,td.error,td.missing,td.skipped,td.waived{overflow-wrap:normal}
figure{margin:1em 0;break-inside:avoid}
figcaption{font-size:.85rem;line-height:1.4}
figcaption strong{color:var(--ink);font-weight:600}
img{max-width:100%;height:auto;display:block}
.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 1.5rem}
pre{white-space:pre-wrap;background:#f6f6f6;padding:.7em;font-size:.8rem}
details{margin:.6em 0}summary{cursor:pointer}
@media screen and (max-width:46rem){
 thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
 table.gates,table.gates tbody,table.gates tr,table.list,table.list tbody,table.list tr,table.list td{display:block}
 table.gates tr,table.list tr{border-bottom:2px solid var(--line);padding:.4em 0}
 table.list td{border:0;padding:.1em 0}
 table.list td::before{content:attr(data-label) ": ";color:var(--soft)}
 table.gates td{display:flex;justify-content:space-between;gap:1em;border:0;padding:.1em 0;text-align:right}
 table.gates td::before{content:attr(data-label);color:var(--soft);text-align:left;flex:0 0 5.5em}
 table.gates td:first-child,table.gates td:last-child{display:block;text-align:left}
 table.gates td:first-child::before{content:none}
 table.gates td:last-child::before{content:attr(data-label) ": "}
}
@page{margin:14mm}
@media print{
 body{font-size:9.5pt;max-width:none;padding:0}a{color:inherit}tr{break-inside:avoid}h2,h3,h3+p{break-after:avoid}pre{font-size:7pt;columns:2}
 table{font-size:8pt}nav{display:none}img{max-height:80mm;width:auto}
 .curves{grid-template-columns:1fr 1fr}
 details::details-content{content-visibility:visible;block-size:auto}
}
"""

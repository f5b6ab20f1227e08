from dataclasses import dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    page: int
    read: int
def page(counts, figures):
    out=[repr(counts)]
    for f in figures:
        out.append(f"{f.engines} load {f.load:.1f} {f.scraped} {f.ruled} rec {f.recorded} alerts {f.alerts} missed {f.missed}")
        for c in (*f.groups, *sorted(f.rules,key=lambda c:-c.median)):
            out.append(f"{c.group:18} {c.name:55} {c.interval:4.0f} n={len(c.seconds)} {c.median*1000:9.1f} ms max {max(c.seconds)*1000:.1f}")
    return "\n".join(out)+"\n"

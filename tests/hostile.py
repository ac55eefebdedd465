"""Text that somebody puts into jobs so that whoever looks at them is harmed."""

MARKUP = [
    "<img src=x onerror=\"window.taken='img'\">",
    "<script>window.taken='script'</script>",
    '"><svg onload="window.taken=\'svg\'">',
    "</textarea></script><script>window.taken='closed'</script>",
    "javascript:window.taken='url'",
    "{{constructor.constructor('window.taken=1')()}}",
    "${window.taken='template'}",
    "<style>*{display:none}</style><base href='https://evil.example/'>",
    "<a href='javascript:window.taken=1'>click me</a>",
    "<iframe srcdoc='<script>parent.taken=1</script>'></iframe>",
]
ODD = [
    "\u202egnp.exe",
    "a\u200bb\u2066c\u2069\ufeff",
    "\x1b[31mred\x1b[0m\x07\x08\x00",
    "line\r\nfeed\u2028separator\u2029",
    "\U000e0041\U000e0042",
    "\u0e49" * 500,
]
FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1+1)*cmd|' /C calc'!A0", "+1+1", "-2+3"]
LONG = "A" * 1_000_000
LONG_MARKUP = "<b>\u202e" * 90_000

CORPUS = [*MARKUP, *ODD, *FORMULAS, LONG, LONG_MARKUP]

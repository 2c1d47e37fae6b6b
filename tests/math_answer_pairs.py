r"""Pairs that are one answer, pairs that are not, and texts made to hurt. A line is `gold | answer`, as in the box."""

from __future__ import annotations

SAME = r"""
42 | 42.0
42 | +42
42 | 042
-3 | −3
-3 | ‑3
12 | 12\text{ sq. ft}
6 | 6\text{ m/s}^2
0.5 | \frac12
0.5 | .5
\frac{1}{2} | 1/2
\frac{1}{2} | 0.50
\frac{1}{2} | ½
\frac{-1}{2} | -\frac{1}{2}
\frac{1}{-2} | -0.5
-\frac{7}{4} | -1\frac{3}{4}
\frac{7}{4} | 1 3/4
\frac{1}{3} | 0.\overline{3}
\frac{1}{6} | 0.1\overline{6}
1000000 | 10^6
1000000 | 1{,}000{,}000
1000000 | 1\,000\,000
1000000 | 1\ 000\ 000
1,000 | 1000
0.00012 | 1.2 \times 10^{-4}
120000 | 1.2e5
120000 | 1.2 \cdot 10^5
1024 | 2^{10}
\sqrt{12} | 2\sqrt{3}
2\sqrt{3} | \sqrt{12}
\frac{\sqrt{2}}{2} | \sqrt{\frac{1}{2}}
1+\sqrt{2} | \sqrt{2}+1
1+\sqrt{2} | \frac{1}{\sqrt{2}-1}
\sqrt[3]{16} | 2\sqrt[3]{2}
2^{1/3} | \sqrt[3]{2}
\frac{\pi}{2} | 0.5\pi
\frac{\pi}{2} | \dfrac{1}{2}\pi
4\pi | 4π
3\ln 2 | \ln 8
\log_2 3 | \frac{\ln 3}{\ln 2}
e^2 | e^{2}
3+4i | 4i + 3
\frac{1+i}{2} | \frac12+\frac{i}{2}
i | \sqrt{-1}
x^2+2x+1 | 1+2x+x^2
x^2+2x+1 | (x+1)^2
(x-1)(x+1) | (x+1)(x-1)
(x-1)(x+1) | -(1-x)(x+1)
(x+1)^2 | (x+1)(x+1)
2x(x+3) | 2(x+3)x
\frac{x+1}{2} | \frac{x}{2}+\frac12
\frac{1}{x}+\frac{1}{y} | \frac{x+y}{xy}
\sqrt{xy} | \sqrt{x}\sqrt{y}
e^{2x} | (e^x)^2
\sin^2 x | (\sin x)^2
\sin 2x | 2\sin x\cos x
2^{n+1} | 2\cdot 2^n
a_1+a_2 | a_{2}+a_{1}
25\% | 0.25
25\% | 25
25\% | \frac{1}{4}
0.25 | 25\%
25 | 25\%
10 | 10\text{ cm}
10\text{ cm} | 10
10\text{ cm} | 10\,\mathrm{cm}
10\text{ cm} | 10 \text{ centimeters}
12\text{ cm}^2 | 12\text{ square cm}
12 | 12\text{ cm}^2
5 | \$5
5 | \$5.00
5\text{ dollars} | \$5
1500000 | 1.5 \text{ million}
90 | 90^\circ
90^\circ | 90
90^\circ | 90^{\circ}
30 | 30 \text{ miles per hour}
x=5 | 5
5 | x=5
5 | x = 5
5 | 5 = x
x=5 | 5=x
2x+3 | y=2x+3
x^2 | f(x)=x^2
y=2x+3 | y = 3+2x
y=2x+3 | 2x+3
y=2x+3 | 2x-y+3=0
2x+3y=6 | 4x+6y=12
1,2 | 2,1
1,2 | 1\text{ and }2
1,2 | x=1 \text{ or } x=2
\{1,2,3\} | \{3,1,2\}
\{1,2,3\} | 1,2,3
3,-3 | \pm 3
1\pm\sqrt{2} | 1-\sqrt{2}, 1+\sqrt{2}
(1,2) | (1, 2)
(1,2) | \left(1,2\right)
(\frac12,3) | (0.5, 3)
(1,2),(3,4) | (3,4),(1,2)
[0,1) | [0, 1)
(0,\infty) | x>0
(0,\infty) | (0,+\infty)
(-\infty,0)\cup(1,\infty) | (1,\infty)\cup(-\infty,0)
(-\infty,0)\cup(1,\infty) | x<0\text{ or }x>1
(-\infty,1)\cup(1,\infty) | \mathbb{R}\setminus\{1\}
(0,\infty) | [0,\infty)\setminus\{0\}
[1,2) | [1,2]\setminus\{2\}
1<x<3 | x>1 \text{ and } x<3
(1,3) | x<3 \text{ and } x>1
(-\infty,1)\cup(3,\infty) | x<1 \text{ and } x>3
(1,2] | 1<x\le 2
x \ge 3 | [3,\infty)
x \ge 3 | 3 \leq x
[0,2] | [0,1]\cup[1,2]
x\in[0,1] | [0,1]
\emptyset | \varnothing
\begin{pmatrix}1\\2\end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix}1&\frac12\end{pmatrix} | \begin{pmatrix} 1 & 0.5 \end{pmatrix}
1011_2 | 1011_{2}
1011_2 | 1011
\text{Tuesday} | Tuesday
\text{Tuesday} | \textbf{TUESDAY.}
\text{C} | C
C | \text{(C)}
\text{(C)} | \text{C}
\text{Yes} | \text{yes}
2^3\cdot 5 | 5 \cdot 2^3
5! | 120
\binom{5}{2} | 10
10 | \boxed{10}
72 | $72$
\$72 | 72
#### 72 | 72
\boxed{72} | 72
x | x
\infty | +\infty
-\infty | -\infty
|x| | |x|
\frac{x}{|x|} | \frac{x}{|x|}
\lfloor x \rfloor | \lfloor x\rfloor
n! | n (n-1)!
\binom{n}{2} | \binom{n}{n-2}
\binom{n}{2} | \frac{n!}{2!(n-2)!}
1:2 | 1 : 2
\langle 1,2\rangle | (1, 2)
\tan^{-1} 2 | \arctan(2)
"""

DIFFERENT = r"""
[0,\infty) | [0,\infty)\setminus\{0\}
[1,2] | [1,2]\setminus\{2\}
\mathbb{R} | x>1 \text{ and } x<3
[1,3) | x>1 \text{ and } x<3
42 | 41
42 | 42.0000001
42 | -42
42 | 420
42 | 4 2
42 | 42x
42 | 42!
42 | x
0.1 | 0.1000001
\frac{1}{3} | 0.33
\frac{1}{3} | 0.3333333333333333
0.333 | \frac{1}{3}
\frac{2}{3} | \frac{3}{2}
\frac{3}{2} | 1\frac{1}{3}
11/2 | 1 1/2
1 1/2 | 11/2
1\frac12 | \frac{11}{2}
\pi | 3.14159
\pi | \frac{22}{7}
\pi | 3.14159265358979323846264338327950288419716939937510
\sqrt{2} | 1.41421356237309504880168872420969807856967187537694
\sqrt{2} | \sqrt{2+10^{-100}}
\sqrt{2} | \sqrt{2}+10^{-200}
e | 2.718281828
262537412640768744 | e^{\pi\sqrt{163}}
3+4i | 3-4i
3+4i | (3,4)
i | -i
x^2+1 | x^2-1
x^2 | x^3
x | y
x^2+2x+1 | y^2+2y+1
x | \sqrt{x^2}
x+1 | \frac{x^2-1}{x-1}
(x-1)(x+1) | x^2-1
(x+1)^2 | x^2+2x+1
x(x+1) | x^2+x
5050 | \frac{100\cdot 101}{2}
5050 | \sum_{k=1}^{100}k
5 | 2+3
6 | 2\cdot 3
6 | 2 \times 3
120 | 5!
10 | \binom{5}{2}
3 | \log_2 8
\frac12 | \sin 30^\circ
1 | \sin^2 x+\cos^2 x
1 | \lim_{x\to 0}\frac{\sin x}{x}
2 | \int_0^2 1\,dx
2^3\cdot 3^2 | 72
25\% | 0.025
25\% | 2.5
0.25 | 0.25\%
0.25 | 25
0.5\% | 0.5
10\text{ cm} | 10\text{ m}
10\text{ cm} | 10\text{ cm}^2
10\text{ cm} | 11\text{ cm}
90^\circ | 90\%
5 | 5\text{ million}
5 | 5\text{ or }6
5 | 5\text{ is wrong}
5 | \text{not }5
5 | \text{five}
5 | 5, 6
5 | 5\text{ and }6
5 | \{5,6\}
5 | \pm 5
5 | (5)(1)
5 | 1=5
5 | 5=5=5
5 | 2+3=5
5 | 1=2=3=4=5
5 | x=5,y=6
5 | 4<5
5 | x>5
5 | xy=5
5 | 5=xx
30 | 30\text{7 miles}
12 | 12\text{ cm}^4
12 | 12\text{2 cm}^2
90 | 90\%^\circ
5 | x\ne 5
5 | \approx 5
5 | 5+x-x
5 | [5,5]
5 | ?
5 | \text{NaN}
5 | \infty
5 | \frac{5}{0}
5 | \frac{5}
5 | {5
5 | 5\\6
5 | 5 \quad 6
5 | \text{gold}
5 | task[gold]
x=5 | y=5
x=5 | x=-5
x=5 | 2x=10
x=5 | x\ne 5
y=2x+3 | y=2x-3
y=2x+3 | y=2x+3=0
2x+3y=6 | 2x+3y=7
1,2 | 1,2,3
1,2 | 1
1,2 | 1,1
1,2 | (1,2)
1,1,2 | 1,2,2
\{1,2\} | \{1,2,3\}
\{1,2\} | (1,2)
3,-3 | 3
(1,2) | (2,1)
(1,2) | [1,2]
(1,2) | \{1,2\}
(1,2) | 1,2
(1,234) | 1234
1234 | 1,2,3,4
[0,1) | (0,1)
[0,1) | [0,1]
[0,1) | [0,1),[2,3)
(0,\infty) | x\ge 0
(0,\infty) | (0,1)
(-\infty,0)\cup(1,\infty) | (-\infty,0)\cap(1,\infty)
(-\infty,0)\cup(1,\infty) | (-\infty,0]\cup(1,\infty)
(-\infty,0)\cup(1,\infty) | (-\infty,\infty)
[0,2] | [0,1)\cup(1,2]
(1,2] | 2<x\le 1
\emptyset | 0
\emptyset | \{0\}
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}1&2\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} | (1,2)
1011_2 | 1011_3
1011_2 | 11
1011_2 | 1101_2
\text{Tuesday} | \text{Monday}
\text{Tuesday} | \text{Tuesday or Monday}
\text{Tuesday} | \text{Not Tuesday}
\text{C} | \text{A, B, C, D}
\text{C} | A, B, C
\text{C} | \text{A}
\text{C} | \text{B or C}
\text{Yes} | \text{Yes and no}
A | a
\text{Yes} | \text{No}
\infty | -\infty
\infty | 10^{300}
\ln 2 | \log 2
n! | (n+1)!
1:2 | 2:1
1:2 | 1:2:3
1:2 | \frac12
3:00 \text{ p.m.} | 3:00
3:00 \text{ p.m.} | 3:00 \text{ a.m.}
\tan^{-1} 2 | \frac{1}{\tan 2}
\lfloor x \rfloor | \lceil x \rceil
"""

HURTFUL = [
    r"9^{9^{9^{9}}}",
    r"10^{10^{10}}",
    r"2^{-10^{10}}",
    r"(1+10^{-300})^{10^{9}}",
    r"1.0000001^{1000000000}",
    r"100000000!",
    r"((200!)!)!",
    r"\binom{10^9}{10^8}",
    r"e^{e^{e^{e}}}",
    r"\sqrt{2}^{\sqrt{2}^{\sqrt{2}}}",
    r"\sin(10^{400})",
    r"\sqrt[1000000000]{2}",
    r"2^{\frac{1}{1000000007}}",
    r"\sum_{k=1}^{10^{12}} \frac{1}{k^2}",
    r"\int_0^\infty e^{-x^2} dx",
    r"1e999999999",
    r"0.\overline{" + "142857" * 300 + "}",
    "9" * 1900,
    "(" * 1900,
    "[" * 950 + "]" * 950,
    "{" * 900 + "5" + "}" * 900,
    r"\frac{1}{1+" * 150 + "1" + "}" * 150,
    r"\sqrt{2+" * 200 + "2" + "}" * 200,
    "-" * 1900 + "5",
    "5" + "!" * 1900,
    "5" + "%" * 1900,
    "x^" * 900 + "x",
    "2^{" * 300 + "2" + "}" * 300,
    "+".join(rf"\sin({i}x)" for i in range(150)),
    "+".join(f"{i}^{{{i}}}" for i in range(180)),
    ",".join(str(i) for i in range(400)),
    r"\{" + ",".join(rf"\sqrt{{{i}}}" for i in range(100)) + r"\}",
    r"\cup".join(f"({i},{i + 1})" for i in range(150)),
    r"\begin{pmatrix}" + "1&" * 400 + r"1\end{pmatrix}",
    r"\pm " * 300 + "5",
    r"\text{" * 300 + "5" + "}" * 300,
    "a" * 1999,
    " " * 1999,
    "\\" * 1999,
    "1 " * 900,
    "$" * 1999,
    "x=" * 900 + "5",
    "𝟓" * 1900,
    "½" * 600,
    "²" * 1900,
]
HURTFUL_GOLDS = ["5", r"\sqrt{2}+1", "x^2+1", r"\sin x+\sin 2x", "1,2", "(0,1)", r"\text{C}", r"\lfloor x\rfloor"]

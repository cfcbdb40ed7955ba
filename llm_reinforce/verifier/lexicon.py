"""Words that decide which number a text states as its answer: hedges, negations, operations, units, …"""


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


HEDGES = words(
    "about approximately approx roughly around nearly almost circa ca over under above below exceeding "
    "beyond within near maybe perhaps possibly up estimated estimate roughly close somewhere upwards barely"
)
"""Words before a number that make it a bound or an estimate."""
HEDGES_AFTER = words("approximately approx roughly ish give thereabouts estimated")
"""Words after a number that make it a bound or an estimate."""
INSERTED = HEDGES | HEDGES_AFTER | words("less take")
"""Words between two commas before a number: "The answer is, more or less, 42"."""
BOUNDS_AFTER = words("more less fewer above below over under up greater so higher lower larger")
"""Words after "42 or" and "42 and" that make 42 a bound or an estimate."""
NEGATIONS = words(
    "not never cannot neither nor without except excluding unlike unlikely instead impossible anything "
    "different far hardly scarcely false"
)
CORRECTIONS = words("no nope wait sorry actually correction oops hmm rather scratch")
"""Words between two values that take the first value back."""
WRONG_AFTER = words("not wrong incorrect false never impossible")
MULTIPLIERS = words("twice double triple half thrice quadruple squared cubed")
PARTS = words(
    "half root square cube third thirds quarter quarters fourth factorial logarithm log multiple multiples "
    "factor factors power percent reciprocal inverse opposite out divisor divisors double triple"
)
"""Words that turn the number after "of" into another value, as in "half of 84"."""
OPERATIONS = words("plus times minus divided multiplied mod modulo choose")
"""Words before a number that turn the number into an expression, as in "minus 3"."""
JOINING = OPERATIONS | words("base by x")
"""Words between two numbers that join the numbers into an expression, as in "3 times 4"."""
MULTIPLYING = words("divided multiplied divide multiply dividing multiplying")
"""Words before "by" and a number, as in "divided by 2"."""
SUMS = words("add adds added adding sum sums summed comes ends ended")
"""Words before "up to" with which "up to" is not a bound, as in "adds up to 42"."""
BASES = words("base binary octal hexadecimal hex")
OPERATIONS_AFTER = words(
    "squared cubed factorial doubled tripled halved quadrupled times plus minus divided multiplied mod "
    "modulo choose base raised halves thirds fourths fifths sixths sevenths eighths ninths tenths"
)
FILLERS = words(
    "a an the exactly just only be to equal equals simply really actually number value even necessarily or "
    "as of from have but"
)
"""Words that are skipped in the search for a hedge or a negation before a number."""
ADVERBS = words("maybe perhaps possibly even else is it be it's rather also then alternatively")
"""Words that are skipped between "or" and a number."""
ALTERNATIVES = words("or and to through versus vs")
CONDITIONS = words("if unless")
COPULAS = words("is are was were be been equals equal has have gives get gets got therefore")
COMMITTING = COPULAS - words("has have") | words("so then total answer thus hence which who")
"""Words after which another number can be the answer."""
NUMBER_WORDS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred"
)
FUNCTIONS = words("sqrt log ln lg exp sin cos tan cot sec csc gcd lcm floor ceil abs det arcsin arctan")
SCALES = {
    **{"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9},
    "trillion": 10**12,
}
PER_CENT = words("% percent pct percentage percents")
NO_UNITS = words(
    "is are was were am be been being and or but so because since as at in of by for from on with without "
    "to than that this these those the a an it he she we they i you his her its their our your who which "
    "when where while if unless not no nor do does did has have had will would can could should may might "
    "must total totals altogether overall each every left remaining more less fewer other others all both "
    "together per after before until then there here now therefore thus hence also only just too again "
    "if up out off over under into about via i.e e.g etc respectively correct final finally exactly said "
    "equals equal gives my me us him them"
)
"""Words after a number that are not the unit of the number."""

_NAMES = (
    "mm millimeter millimetre; cm centimeter centimetre; dm decimeter decimetre; m meter metre; "
    "km kilometer kilometre kms; in inch inches; ft foot feet; yd yard yds; mi mile; mg milligram; "
    "g gram gm gms; kg kilogram kilo kgs; ton tonne; lb pound lbs; oz ounce; ms millisecond; "
    "s sec second secs; min minute mins; h hr hour hrs; day; week wk wks; month; year yr yrs; "
    "ml milliliter millilitre mL; l L liter litre; gal gallon; mph; kmph kph; "
    "$ dollar usd USD bucks buck; cent ¢; € euro eur EUR; £ gbp GBP; ° degree deg; rad radian; hz Hz; "
    "W watt; kW kilowatt; kWh; V volt; N newton; J joule; A amp ampere; C celsius; "
    "F fahrenheit; K kelvin; GB gigabyte; MB megabyte; KB kB kilobyte"
)
UNITS: dict[str, str] = {
    spelling: names.split()[0]
    for names in _NAMES.split(";")
    for name in names.split()
    for spelling in ((name, f"{name}s") if len(name) > 2 else (name,))
}
"""Mapping from each spelling of a unit of measurement to the name of the unit."""
ATTACHED_LETTERS = frozenset("gmshlLWVNJAC°$€£")
"""One-letter units that can directly follow digits, as in 15m. Another letter after digits is a variable."""

"""Label sets that several corpora share, and their coarse versions: ages and accents of English."""

from __future__ import annotations

from .sources.base import Fact

GENDERS = ("female", "male")
_GENDER_OF = {
    "f": "female",
    "female": "female",
    "female_feminine": "female",
    "m": "male",
    "male": "male",
    "male_masculine": "male",
}
AGE_GROUPS = ("15-19", "20-24", "25-29", "30+")
"""Fine age groups of VCTK's speakers, as in the paper."""
DECADES = ("teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies", "eighties", "nineties")
"""Common Voice's ages, in its own spelling."""
COARSE_AGES = ("young", "middle-aged", "senior")
"""Under 30, 30 to 59, 60 and over."""
REGIONS = {
    "British Isles": "British, England English, Irish, Irish English, Northern Irish, Scottish, Scottish English, "
    "Welsh, Welsh English",
    "North America": "American, Canadian, Canadian English, United States English",
    "Oceania": "Australian, Australian English, New Zealand, New Zealand English",
    "Africa": "South African, South African accent",
    "South Asia": "Bangla, Indian, Indian English, Malayalam, Odiya, Telugu",
    "East and Southeast Asia": "Filipino, Hong Kong English, Malaysian English, Singaporean English",
    "Continental Europe": "German English",
}
"""Coarse accents: where the fine ones are spoken."""
_REGION_OF = {accent.strip(): region for region, accents in REGIONS.items() for accent in accents.split(",")}


def gender(value: str) -> tuple[Fact, ...]:
    """Return the SGC fact of a gender as the corpus writes it; none if it is neither female nor male."""
    word = _GENDER_OF.get(value.strip().casefold())
    return (Fact("SGC", word, GENDERS),) if word else ()


def accent(label: str, fine: tuple[str, ...]) -> tuple[Fact, ...]:
    """Return the fine and the coarse AC fact of an accent; none if it is not one of `fine`."""
    if label not in fine:
        return ()
    regions = tuple(dict.fromkeys(_REGION_OF[name] for name in fine))
    coarse = (Fact("AC", _REGION_OF[label], regions, "coarse"),) if len(regions) > 1 else ()
    return (Fact("AC", label, fine, "fine"), *coarse)


def age_in_years(years: int) -> tuple[Fact, ...]:
    """Return the AR facts of an age in years, by the groups that the paper uses for VCTK."""
    if years < 15:  # no group is younger
        return ()
    fine = AGE_GROUPS[min((years - 15) // 5, len(AGE_GROUPS) - 1)]
    return (Fact("AR", fine, AGE_GROUPS, "fine"), Fact("AR", coarse_age(years), COARSE_AGES, "coarse"))


def age_in_decades(decade: str) -> tuple[Fact, ...]:
    """Return the AR facts of one of Common Voice's decades; none for any other word."""
    if decade not in DECADES:
        return ()
    years = 10 * (DECADES.index(decade) + 1)
    return (Fact("AR", decade, DECADES, "fine"), Fact("AR", coarse_age(years), COARSE_AGES, "coarse"))


def coarse_age(years: int) -> str:
    """Return the group of COARSE_AGES that holds an age."""
    return COARSE_AGES[0 if years < 30 else 1 if years < 60 else 2]

"""The two-hop question that the embedded default is asked about cities."""

PROMPT = "The capital of the state containing {city} is"
CITY_AT = 7
"""Position of the city in `PROMPT`, the start token being position 0."""

"""The runtime type checker behind the jaxtyping import hook of the tests."""

from beartype import BeartypeConf, beartype

# PEP 484's numeric tower: `float` accepts an int, as every type checker and the config room have it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

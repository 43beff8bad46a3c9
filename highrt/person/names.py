"""Names for containers that nobody named."""

import secrets

_ADJECTIVES = (
    "amber blue brave bright calm clear clever cool deep eager early fair fast fine fond free fresh gentle glad golden grand "
    "green happy keen kind light lively long lucky mellow merry mild neat new noble plain proud pure quick quiet rapid ready "
    "rich round sharp shy silent silver simple smart smooth soft solid steady still strong sunny sweet swift tall tidy warm "
    "wide wild wise young"
)
_NOUNS = (
    "alder anchor apple ash bay beacon birch bridge brook canyon cedar cliff cloud comet coral cove creek dawn delta dune eagle "
    "elm falcon fern field finch fjord forest garden glacier harbor hazel heron hill island lagoon lake lark maple meadow mesa "
    "moon moss oak ocean orchard otter owl palm peak pebble pine plain pond prairie rain raven reef ridge river robin shore "
    "sky snow spring star stone stream summit swan thistle tide valley wave willow wren"
)


def suggest() -> str:
    """Two words, like `quiet-river`."""
    return f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_NOUNS.split())}"

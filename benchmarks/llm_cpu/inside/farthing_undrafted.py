"""`farthing` with prompt lookup off, because no peer here guesses ahead unless it is told to: the same work for all."""

from farthing.cli.main import main
from farthing.llm.generator import Generator

defaults = Generator.__init__.__kwdefaults__
assert defaults["speculates"] is True
defaults["speculates"] = False
main()

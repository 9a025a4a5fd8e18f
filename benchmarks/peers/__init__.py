"""The servers that are compared, in the order in which they are run. A new one is a file here and a line below."""

from peers import bare, bentoml, farthing, kserve, litserve, mlserver, rayserve, triton
from peers.contract import Peer

ALL: tuple[Peer, ...] = (
    *farthing.PEERS,
    *triton.PEERS,
    *mlserver.PEERS,
    *litserve.PEERS,
    *kserve.PEERS,
    *bentoml.PEERS,
    *rayserve.PEERS,
    *bare.PEERS,
)

BY_NAME: dict[str, Peer] = {peer.name: peer for peer in ALL}

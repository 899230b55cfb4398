"""Local stores of users whose rights are not those of this process: a child has them, and does all that is done there.

    session ══ socket ══▶ child of that uid, gid and groups ──▶ the store's own session ──▶ files
       └── pool ── socket ──▶ server (root, single-threaded) ── fork, setgroups, setgid, setuid ──▶ child

The octets of a list or batch of messages cross in one piece; a large one does not cross, its open file does. Who has
the rights of a user can be whatever that user makes of him: what a child says is data of known types, never more.
"""

from aimport.stores.rights.pool import Pool as Pool
from aimport.stores.rights.sessions import RightsDestination as RightsDestination
from aimport.stores.rights.sessions import RightsSource as RightsSource

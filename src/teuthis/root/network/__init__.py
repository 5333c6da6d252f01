"""A VM's network as its owner asks for it: none, the user's own, or a named one between VMs.

`wanted` what was asked, checked; `user` passt and the switch before it; `named` the switch that VMs
share; `attach` puts one VM on its network before it boots.
"""

from teuthis.root.network.attach import Attachment, attach
from teuthis.root.network.wanted import Wanted, wanted

__all__ = ["Attachment", "Wanted", "attach", "wanted"]

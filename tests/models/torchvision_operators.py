"""A plugin for pytest, for a torch and a torchvision of different builds: -p torchvision_operators.

Such a torchvision lacks its operators, and fails where it describes them when it is imported. Its
transforms, all that open_clip needs, use none.
"""

import sys
from types import ModuleType

sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

# aioimaplib has no type marker; these are the parts of 2.0.3 that aimport or its tests may use.
from .aioimaplib import *

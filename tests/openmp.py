"""A module that loads GNU's OpenMP when it is imported, as many libraries do."""

import ctypes
import ctypes.util

LIBRARY = ctypes.CDLL(ctypes.util.find_library("gomp"))

"""Messages that lie one in a file: directories of `.eml`, MH folders, zip and tar archives."""

from aimport.stores.loose.archives import TarSource as TarSource
from aimport.stores.loose.archives import ZipSource as ZipSource
from aimport.stores.loose.destination import EmlDestination as EmlDestination
from aimport.stores.loose.folders import EmlSource as EmlSource
from aimport.stores.loose.folders import MhSource as MhSource

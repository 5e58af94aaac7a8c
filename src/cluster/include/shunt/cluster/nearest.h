#pragma once

// Lives in core, since routing needs it too.
#include <shunt/core/nearest.h>

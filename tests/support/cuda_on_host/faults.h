// The way out of a launch that fails.
#pragma once

#include <csetjmp>

namespace host {

extern sigjmp_buf way_out;
extern char reason[2048];

} // namespace host

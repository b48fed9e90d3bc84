// cp.async: what was started lands when its thread waits for its group, as late as the device could let it.

#include <cstring>

#include "state.h"

namespace host {

void copy_later(void *shared, const void *global, int bytes, bool wanted) {
    auto address = reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global);
    if (address % bytes) fail("copy_async<%d>: %p or %p is not a multiple of %d", bytes, shared, global, bytes);
    if (!is_shared(shared, bytes)) fail("copy_async<%d>: %p is not in shared memory", bytes, shared);
    Copy copy{static_cast<unsigned char *>(shared), static_cast<const unsigned char *>(global), {}, bytes,
              running->group, wanted};
    if (wanted) {
        watch(global, bytes, false, running->rank);
        memcpy(copy.bytes, global, bytes);
    }
    watch(shared, bytes, true, running->rank);
    memset(shared, launch.garbage, bytes);
    running->copies.push_back(copy);
}

void close_group() { running->group++; }

void land(int left) {
    auto &copies = running->copies;
    size_t landed = 0;
    for (; landed < copies.size() && copies[landed].group < running->group - left; landed++) {
        const Copy &copy = copies[landed];
        if (copy.wanted && memcmp(copy.from, copy.bytes, copy.size))
            fail("copy_async: what it reads, %p, changed before it had landed", static_cast<const void *>(copy.from));
        for (int i = 0; i < copy.size; i++)
            if (copy.to[i] != launch.garbage) fail("copy_async: somebody wrote to where it lands before it had landed");
        watch(copy.to, copy.size, true, running->rank);
        memcpy(copy.to, copy.bytes, copy.size);
    }
    copies.erase(copies.begin(), copies.begin() + landed);
}

} // namespace host

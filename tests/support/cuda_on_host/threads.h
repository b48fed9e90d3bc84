// What a kernel, compiled for the CPU, and threads.cpp, which runs its threads, know of each other. No CUDA word.
#pragma once

namespace host {

struct Place { // of a CUDA thread
    int thread, block, row, blocks, rows, rank;
};
extern const Place *here; // of the one that runs

constexpr long MOST_SHARED = 227 * 1024; // bytes of a block, on the device
constexpr long MARGIN = 528;             // bytes before and after, which nobody may touch

// The dynamic shared memory of the block that runs, no better aligned than the device promises.
struct alignas(32) Arena {
    unsigned char before[MARGIN], dynamic[MOST_SHARED], after[MARGIN];
};
static_assert(MARGIN % 32 == 16, "multiples of 16, not of 32");
extern Arena arena;

// Meetings: each returns once all the threads concerned have come.
float exchange(float value, int apart);         // those of a warp
long long shuffle(long long value, int lane); // those of a warp, and what one of them had
bool exchange_any(bool mine);                   // those of a warp, and whether one of them had true
void meet_warp();                               // those of a warp, and what they did before is seen after
void meet();                                    // those of a block
bool meet_any(bool mine);                       // the same, and whether one of them had true
void meet_cluster();                            // those of all blocks of a cluster
void store(float *mine, int peer, float number);

// Copies that are held back until somebody waits for them.
void copy_later(void *shared, const void *global, int bytes, bool wanted);
void close_group();
void land(int left);

struct Program {
    void (*body)(const void *argument); // of one thread
    unsigned long argument_size;
    int threads, cluster;            // what it was compiled for
    unsigned char *begin, *end;      // where its SHARED arrays lie
};

} // namespace host

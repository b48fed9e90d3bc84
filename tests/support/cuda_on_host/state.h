// What a launch is doing, shared by the files that run it. Kernels do not see it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "fibers.h"
#include "threads.h"

namespace host {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024, MOST_CLUSTER = 8;
constexpr long MOST_STATIC = 48 * 1024; // bytes of a block's SHARED, on the device

enum State {
    READY,
    AT_BARRIER,
    AT_BARRIER_ANY,
    IN_ACROSS,
    IN_FROM_LANE,
    IN_WARP_ANY,
    AT_WARP_BARRIER,
    AT_CLUSTER_BARRIER,
    ENDED,
    STATES
};

struct Copy {
    unsigned char *to;
    const unsigned char *from;
    unsigned char bytes[16];
    int size, group;
    bool wanted;
};

struct Thread : Place {
    Stack stack;
    State state;
    int group; // of copies, the one still open
    std::vector<Copy> copies;
};

struct Warp {
    int arrived;
    State kind; // of the meeting that some have come to
    int apart;  // in shuffle_xor
    unsigned meetings, barriers;
    uint64_t values[2][WARP]; // of this meeting and the one before, which somebody may not have read yet
};

struct Block {
    uint64_t ready[MOST_THREADS / 64];
    int arrived, ended, meetings;
    State kind; // of the meeting that some have come to
    bool any, any_before;
    Warp warps[MOST_THREADS / WARP];
    std::vector<unsigned char> image; // its shared memory while another block of the cluster has its place
};

enum Order { FORWARD, BACKWARD, RANDOM };

struct Launch {
    const Program *program;
    const void *argument;
    int threads, cluster, left; // left: threads of the cluster that have not ended
    long shared;
    Order order;
    uint64_t random;
    int cluster_arrived, cluster_meetings;
    int resident; // the block whose shared memory is in place
    unsigned char garbage;
    bool watched; // for races
    int turn;     // which cluster this is, from 1
};

extern Launch launch;
extern Thread *running;
extern std::unique_ptr<Block[]> blocks;
Block &own();        // the block that runs
long static_bytes(); // of SHARED in a block

// Go on with a thread that need not wait, of the same block if there is one; with the scheduler if there is none.
void go_on();
void wait(State state);                       // the same, until this thread is released
void release(int rank, int first, int count); // threads of a block

// End the launch with a reason. It never returns, from no stack and no handler of a signal.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Whether all of it is shared memory of the block that runs.
bool is_shared(const void *address, int bytes);

bool is_stack(const void *address);

// How many barriers the block, and the warp, that runs has passed.
int meetings();
int warp_meetings();

// Note an access of the thread that runs, to memory of all or, in shared memory, of a block of its cluster.
void watch(const void *address, int bytes, bool write, int rank);
void forget_accesses();

// While one lives, what a thread does to memory that is not there ends the launch instead of the process.
class Faults {
public:
    Faults();
    ~Faults();
};

} // namespace host

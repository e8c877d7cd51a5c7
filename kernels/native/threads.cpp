// Placement of parallel_for's threads on cores.
#include <omp.h>
#include <sched.h>

#include "native/common.h"

namespace graph_train {

int num_threads() {
  static const int threads = std::max(1, omp_get_max_threads());
  return threads;
}

int current_core() { return sched_getcpu(); }

// OneFlow's scheduler thread calls sched_yield while a graph runs. Its core looks busy to the system, which may
// therefore run two threads of a team on the same other core; a step then takes 1.7 times as long.
void leave_core(int core) {
  if (core < 0 || sched_getcpu() != core) return;
  struct Allowed {
    cpu_set_t cores;
    bool known;
    Allowed() : known(sched_getaffinity(0, sizeof(cores), &cores) == 0) {}
  };
  static thread_local const Allowed allowed;  // before the first call of this function changed it
  if (!allowed.known) return;
  cpu_set_t others = allowed.cores;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof(others), &others);
}

}  // namespace graph_train

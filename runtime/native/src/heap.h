// What glibc's allocator keeps between calls.
#pragma once

namespace cpuc {

// Every call of a model frees what it allocated; by default glibc hands that back to the kernel, and the next call pays for each
// page anew. So the heap keeps as much of it as the Python runtime's, grows by that once and asks for huge pages there, whose
// addresses are translated faster. As there, the allocator's own variables come first. Other allocators, such as cpuc-run's, know
// none of these limits, but take the same room and keep it.
//
// Call it on the process's first thread: only that one's heap grows as one piece. On another it sets the limits alone.
void keep_freed_memory();

}  // namespace cpuc

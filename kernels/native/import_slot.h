// The place where a loaded library keeps the address of a function that it calls.
#ifndef GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_
#define GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_

namespace graph_train {

// Writable address of the slot for `symbol` (its mangled name) in the first loaded library whose file name begins with
// `library`; nullptr where there is none: a statically linked or renamed build.
void** import_slot(const char* library, const char* symbol);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_

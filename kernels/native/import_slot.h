// The places where a loaded library keeps the address of a function that it calls.
#ifndef GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_
#define GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_

namespace graph_train {

// Lets the first loaded library whose file name begins with `library` call `function` where it calls `symbol` (its mangled
// name). Returns in how many places; 0 where there is none: a statically linked or renamed build.
int replace_import(const char* library, const char* symbol, void* function);

}  // namespace graph_train

#endif  // GRAPH_TRAIN_KERNELS_IMPORT_SLOT_H_

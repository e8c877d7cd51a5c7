// Redirection of the calls that a loaded library makes to a function of another library, or to a virtual function.
#pragma once

namespace graph_train {

// Redirects calls of `symbol` (a mangled name) to `function`, in the first loaded library whose file name begins with
// `library`. Returns the number of redirected slots; 0 for a statically linked or renamed build.
int replace_import(const char* library, const char* symbol, void* function);

}  // namespace graph_train

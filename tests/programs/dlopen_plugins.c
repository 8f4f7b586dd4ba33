// Libraries that allocate: in their constructor, when called, and again where the last one was.
//
// Each plugin is loaded, used and closed before the next, so that the second may well lie at the
// addresses of the first: its frames must not get the first one's names.
//
// expect: function=plugin_constructor api=malloc allocations=13 allocated_bytes=2639 frees=0 freed_bytes=0 live_blocks=13 live_bytes=2639
// expect: function=first_plugin_allocates api=malloc allocations=127 allocated_bytes=26797 frees=27 freed_bytes=5697 live_blocks=100 live_bytes=21100
// expect: function=second_plugin_allocates api=malloc allocations=131 allocated_bytes=29213 frees=31 freed_bytes=6913 live_blocks=100 live_bytes=22300
// expect: within=use_first api=malloc allocations=127 allocated_bytes=26797 frees=27 freed_bytes=5697 live_blocks=100 live_bytes=21100
// expect: within=use_second api=malloc allocations=131 allocated_bytes=29213 frees=31 freed_bytes=6913 live_blocks=100 live_bytes=22300
#include "plugins.h"

int main(int argc, char **argv) {
    find_plugins();
    rendezvous(argc, argv, "ready");
    void *library;
    entry function = load("libplugin_first.so", "first_plugin_allocates", &library);
    use_first(function);
    require(dlclose(library) == 0, 13);
    function = load("libplugin_second.so", "second_plugin_allocates", &library);
    use_second(function);
    rendezvous(argc, argv, "done");
    return 0;
}

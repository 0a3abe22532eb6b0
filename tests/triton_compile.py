"Compile every Triton kernel for cards of compute capability 8.0 and 9.0, where there is none: `NAME CAPABILITY` is printed for each"
import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type
from sparsenb import triton_kernels as kernels

done = set()
def only_compile(kernel, grid, *args, **constants):
    "What `_launch` would launch, with what it knows of its arguments: tensors begin at multiples of 16 bytes"
    types = dict(zip(kernel.arg_names, map(mangle_type, args))) | {k: 'constexpr' for k in constants}
    aligned = {(i, *j): [['tt.divisibility', 16]] for i,a in enumerate(args) for j,t in ([((q,), u) for q,u in enumerate(a)] if isinstance(a, tuple) else [((), a)]) if torch.is_tensor(t)}
    for cc in (80, 90):
        made = compile(ASTSource(kernel, types, constants, aligned), target=GPUTarget('cuda', cc, 32), options=dict(enable_fp_fusion=True))
        assert made.asm['cubin'] and '.local' not in made.asm['ptx'], f'{kernel.__name__} keeps numbers outside its registers'
        done.add((kernel.__name__, cc))

kernels._interpreted,kernels._launch = (lambda: True), only_compile
n,m,d,k = 32,4096,2304,64
K,x,W,val,idx = kernels.TritonKernels(16),torch.randn(n, d),torch.randn(m, d),torch.randn(n, k),torch.randint(m, (n, k))
K.topk(x, W, W[:,0], k); K.decode(idx, val, W); K.dots(x.bfloat16(), W, idx); K.decode_error(idx, val, W, x[0], x.bfloat16())
places = K.by_feature(idx, m, val)
K.gather(x, val, places)
for unit in (False, True): K.adam_rows(W, W.clone(), W.clone(), [(x.bfloat16(), val, places), (x, val, places)], .1, (.9, .99), 1e-8, 1, unit=unit, extra=(idx[0,:3], x[:3]))
for name,cc in sorted(done): print(name, cc)

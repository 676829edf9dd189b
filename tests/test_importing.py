"""MXNet can be imported with any NumPy that it runs on, and NumPy stays as it was."""

import pathlib
import sys

import pytest

import multitrainer
from support import run_python

ADAMW = "import mxnet as mx; print(type(mx.optimizer.create('adamw')).__module__)"
NUMPY = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"


def test_import_leaves_numpy_as_it_was():
    done = run_python(
        """
        import numpy, sys
        before = set(vars(numpy))
        import multitrainer
        assert "mxnet" not in sys.modules
        import mxnet
        print("bool" in set(vars(numpy)) - before, mxnet.nd.ones(2).sum().asscalar())
        """
    )
    assert done.stdout == "False 2.0\n", done.stderr


def test_a_numpy_without_bool_gets_one_for_the_import():
    """NumPy 1.24 to 1.26 has none, nor has 1.23 without its deprecated names."""
    without = "import numpy; getattr(numpy, '__deprecated_attrs__', {}).pop('bool', None)\n"
    alone = run_python(without + "import mxnet")
    assert "has no attribute 'bool'" in alone.stderr
    done = run_python(without + "import multitrainer, mxnet; print('bool' in vars(numpy), mxnet.__version__)")
    assert done.stdout.startswith("False 1."), done.stderr


def test_an_unsuitable_numpy_raises_an_error_that_names_the_one_to_install():
    """NumPy 2 has no numpy.PZERO, which MXNet reads while it is imported."""
    done = run_python(
        """
        import numpy
        numpy.__version__ = "2.1.0"
        del numpy.PZERO
        import multitrainer
        import mxnet
        """
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: MXNet cannot be imported with NumPy 2.1.0")
    assert last.endswith(f"pip install '{NUMPY}'")


def refused(tmp_path, name, content, prepare="", then=""):
    """Return the errors of ``import multitrainer`` beside a package of that content that stands in for MXNet."""
    if content is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
    done = run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {prepare}\nimport multitrainer\n{then}")
    assert done.returncode == 1
    return done.stderr


def pretend_installed(tmp_path, version):
    (tmp_path / f"mxnet-{version}.dist-info").mkdir()
    (tmp_path / f"mxnet-{version}.dist-info" / "METADATA").write_text(f"Name: mxnet\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("prepare", "then"),
    [("import mxnet", ""), ("", "import mxnet"), ("", "multitrainer.MultiLRTrainer")],
    ids=["imported before", "imported after", "at the first use"],
)
def test_mxnet_2_is_refused_in_one_line(tmp_path, prepare, then):
    """With a package of version 2.0.0 without `mxnet.module`, because the tests run with MXNet 1.9.1."""
    errors = refused(tmp_path, "mxnet", "__version__ = '2.0.0'", prepare, then)
    last = errors.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: MXNet 2.0.0 is not supported, because it has another Gluon; install 1.9.1: pip"
    )
    assert last.endswith(f"pip install 'mxnet>=1.9.1,<2' '{NUMPY}'")
    assert errors.count("Traceback") == 1


@pytest.mark.parametrize(
    "content",
    [
        "import numpy\nnumpy.no_such_name",
        "from numpy import no_such_name",
        "import no_such_package",
        "raise OSError('libopenblas.so.0: cannot open shared object file')",
    ],
)
def test_mxnet_2_that_cannot_be_imported_is_refused_as_such(tmp_path, content):
    pretend_installed(tmp_path, "2.0.0b1")
    errors = refused(tmp_path, "mxnet", content)  # without an import of MXNet
    assert "ImportError: MXNet 2.0.0b1 is not supported" in errors.strip().splitlines()[-1]
    assert errors.count("Traceback") == 1


def test_a_missing_mxnet_is_named_with_what_to_install(tmp_path):
    errors = refused(tmp_path, "", None, "sys.modules['mxnet'] = None")
    assert errors.strip().splitlines()[-1] == (
        f"ModuleNotFoundError: MXNet is not installed: pip install 'mxnet>=1.9.1,<2' '{NUMPY}'"
    )
    assert errors.count("Traceback") == 1


def test_a_missing_numpy_is_named_with_what_to_install(tmp_path):
    errors = refused(tmp_path, "", None, "sys.modules['numpy'] = None")
    assert errors.strip().splitlines()[-1] == (
        f"ModuleNotFoundError: NumPy, which MXNet needs, is not installed: pip install 'mxnet>=1.9.1,<2' '{NUMPY}'"
    )
    assert errors.count("Traceback") == 1


@pytest.mark.parametrize("prepare", ["", "import mxnet"], ids=["", "imported before"])
def test_a_folder_called_mxnet_is_not_mistaken_for_it(tmp_path, prepare):
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "multitrainer").symlink_to(pathlib.Path(multitrainer.__file__).parent)  # MXNet may be beside it
    only_here = f"import numpy; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; {prepare}"
    last = refused(tmp_path, "", None, only_here).strip().splitlines()[-1]
    assert last.startswith(f"ImportError: MXNet is not installed, and the folder {tmp_path / 'mxnet'} has its name")
    assert f"pip install 'mxnet>=1.9.1,<2' '{NUMPY}'" in last


@pytest.mark.parametrize("error", ["OSError('libgfortran.so.4')", "ImportError('no')"])
def test_another_error_of_mxnet_1_is_raised_as_it_is(tmp_path, error):
    last = refused(tmp_path, "mxnet", f"raise {error}", "", "import mxnet").strip().splitlines()[-1]
    assert last == error.replace("('", ": ").replace("')", "")


def test_a_package_that_mxnet_misses_is_named_as_ever(tmp_path):
    errors = refused(tmp_path, "mxnet", "import no_such_package", "", "import mxnet")
    assert errors.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_package'"


def test_a_version_2_that_is_installed_elsewhere_does_not_matter(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    pretend_installed(tmp_path / "elsewhere", "2.0.0b1")
    path = f"import sys; sys.path.insert(0, {str(tmp_path / 'elsewhere')!r})\n"
    done = run_python(path + "import multitrainer, mxnet; print(mxnet.__version__)")
    assert done.stdout.startswith("1."), done.stderr


def test_mxnet_can_be_looked_up_and_its_loader_is_that_of_any_module():
    done = run_python(
        """
        import importlib.util, inspect, sys
        import multitrainer
        spec = importlib.util.find_spec("mxnet")
        assert "mxnet" not in sys.modules
        import mxnet
        print(spec.origin == mxnet.__file__, type(mxnet.__loader__).__name__, len(inspect.getsource(mxnet)) > 0)
        """
    )
    assert done.stdout == "True SourceFileLoader True\n", done.stderr


SHARED_LOADER = """
import importlib.machinery, importlib.util, sys

class Importer:  # finds and loads all modules itself, as pytest's and zipimport's do
    def find_spec(self, name, path=None, target=None):
        if name not in ("mxnet", "another"):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        self.loaders[name] = found.loader
        folders = found.submodule_search_locations
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=self, submodule_search_locations=folders
        )

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.loaders[module.__name__].exec_module(module)

importer = Importer()
importer.loaders = {}
"""


def test_a_loader_that_mxnet_shares_is_not_changed(tmp_path):
    """The other module has a version that would be refused for MXNet."""
    (tmp_path / "another.py").write_text("__version__ = '2.31.0'")
    done = run_python(
        SHARED_LOADER
        + f"""
sys.meta_path.insert(0, importer)
sys.path.insert(0, {str(tmp_path)!r})
import multitrainer, mxnet, another
print(mxnet.__loader__ is mxnet.__spec__.loader is importer, "exec_module" in vars(importer), another.__version__)
{ADAMW}
"""
    )
    assert done.stdout == "True False 2.31.0\nmultitrainer.optimizers.adamw\n", done.stderr


def test_a_finder_that_asks_all_finders_again_imports_mxnet():
    """As the hooks of wrapt do, which surround the execution of a module too."""
    done = run_python(
        """
        import importlib.util, sys

        class Loader:  # a proxy, whose attributes are those of another loader
            __slots__ = ("loader",)
            __dict__ = property(lambda self: vars(self.loader))

            def __init__(self, loader):
                self.loader = loader

            def __getattr__(self, name):
                return getattr(self.loader, name)

            def exec_module(self, module):
                module.__spec__.loader = module.__loader__ = self.loader
                self.loader.exec_module(module)
                print("hook")

        class Finder:
            busy = False

            def find_spec(self, name, path=None, target=None):
                if name != "mxnet" or self.busy:
                    return None
                self.busy = True
                try:
                    spec = importlib.util.find_spec(name)
                finally:
                    self.busy = False
                spec.loader = Loader(spec.loader)
                return spec

        sys.meta_path.insert(0, Finder())
        import multitrainer, mxnet
        print(type(mxnet.__loader__).__name__, type(mxnet.__spec__.loader).__name__, multitrainer.AdamW.__name__)
        """
    )
    assert done.stdout == "hook\nSourceFileLoader SourceFileLoader AdamW\n", done.stderr


def test_the_finder_works_when_it_is_not_installed_or_installed_twice():
    done = run_python(
        """
        import importlib, sys
        import multitrainer
        finder = sys.meta_path.pop(0)
        print(finder.find_spec("mxnet").name, finder.find_spec("numpy"))
        sys.meta_path.insert(0, finder)
        importlib.reload(multitrainer)
        loader = importlib.util.find_spec("mxnet").loader
        print(type(loader).__name__, type(loader._loader).__name__, "mxnet" in sys.modules)
        import mxnet
        print(multitrainer.AdamW.__name__)
        """
    )
    assert done.stdout == "mxnet None\n_MXNetLoader SourceFileLoader False\nAdamW\n", done.stderr


@pytest.mark.parametrize("order", ["multitrainer, mxnet", "mxnet, multitrainer", "multitrainer.symbolic", "gluoncv"])
def test_mxnet_knows_adamw_as_soon_as_both_are_imported(order):
    if order == "gluoncv":  # which imports MXNet itself
        pytest.importorskip("gluoncv")
        order = "multitrainer, gluoncv"
    if order.startswith("mxnet") and sys.version_info >= (3, 12):
        pytest.skip("MXNet alone cannot be imported")
    done = run_python(f"import {order}; {ADAMW}")
    assert done.stdout == "multitrainer.optimizers.adamw\n", done.stderr


def test_threads_that_import_at_once_get_whole_modules():
    """Some hold the lock of a module here while they wait for MXNet, whose own import takes that of AdamW."""
    done = run_python(
        """
        import threading
        import multitrainer
        barrier, found = threading.Barrier(4), []

        def run(statement):
            names = {"multitrainer": multitrainer}
            barrier.wait()
            exec(statement, names)
            found.append(names["found"])

        statements = [
            "import mxnet; found = mxnet.optimizer.SGD",
            "found = multitrainer.MultiLRTrainer.step",
            "from multitrainer._mxnet.arrays import has_gradient as found",
            "from multitrainer.optimizers.adamw import AdamW as found",
        ]
        threads = [threading.Thread(target=run, args=[statement]) for statement in statements]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        import mxnet
        print(len(found), type(mxnet.optimizer.create("adamw")).__name__)
        """
    )
    assert done.stdout == "4 AdamW\n", done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="MXNet alone cannot be imported")
def test_a_thread_that_imports_adamw_first_may_wait_for_the_package():
    """It holds the lock of AdamW's module, and waits for that of the package, whose import would wait for the first."""
    done = run_python(
        """
        import sys, threading, time
        from importlib.machinery import SourceFileLoader
        import mxnet

        def run():
            import multitrainer.optimizers.adamw

        def waits_for_package(thread):
            frame = sys._current_frames()[thread.ident]
            return frame.f_code.co_name == "acquire" and frame.f_locals["self"].name == "multitrainer"

        def create_module(self, spec):
            if spec.name == "multitrainer":  # whose lock is held
                thread.start()
                while not waits_for_package(thread):
                    time.sleep(0.001)

        thread = threading.Thread(target=run, daemon=True)
        SourceFileLoader.create_module = create_module
        import multitrainer
        thread.join()
        print(type(mxnet.optimizer.create("adamw")) is multitrainer.AdamW)
        """
    )
    assert done.stdout == "True\n", done.stderr


FIRST_IMPORT = """
import importlib, os, pathlib, sys
import mxnet
root = pathlib.Path(sys.argv[1])
names = [".".join(["multitrainer", *path.relative_to(root).with_suffix("").parts]) for path in root.rglob("*.py")]
for name in sorted(names):
    child = os.fork()
    if not child:
        del sys.modules["mxnet"]  # its __init__ is executed again, by the first module that imports it
        try:
            importlib.import_module(name.replace(".__init__", ""))
            import mxnet, multitrainer
            assert mxnet.optimizer.Optimizer.opt_registry["adamw"] is multitrainer.AdamW
        except ImportError:
            os._exit(name != "multitrainer.horovod")
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
print(len(names) > 60)
"""


@pytest.mark.slow
def test_every_module_can_be_the_first_import():
    """Each in a process that has the modules of MXNet, but not yet mxnet itself."""
    done = run_python(FIRST_IMPORT.replace("sys.argv[1]", repr(str(pathlib.Path(multitrainer.__file__).parent))))
    assert done.stdout == "True\n", done.stderr

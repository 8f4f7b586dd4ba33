// Allocates outside of Java's heap, in methods with names: every Deflater is zlib's.
//
// With `--wait` it says `ready`, waits for a line, works, says `done` and waits again.
import java.io.IOException;
import java.util.zip.Deflater;

public class Churn {
    static long pressed;

    static void compress(byte[] input) {
        Deflater deflater = new Deflater();
        deflater.setInput(input);
        deflater.finish();
        byte[] output = new byte[input.length + 64];
        pressed += deflater.deflate(output);
        deflater.end();
    }

    static void handle(int rounds, byte[] input) {
        for (int i = 0; i < rounds; i++) {
            compress(input);
        }
    }

    static void rendezvous(String[] arguments, String word) throws IOException {
        if (arguments.length == 0) {
            return;
        }
        System.out.println(word);
        int read = System.in.read();
        while (read >= 0 && read != '\n') {
            read = System.in.read();
        }
    }

    public static void main(String[] arguments) throws IOException {
        rendezvous(arguments, "ready");
        byte[] input = new byte[200];
        for (int i = 0; i < 100; i++) {
            handle(20, input);
        }
        rendezvous(arguments, "done");
    }
}
